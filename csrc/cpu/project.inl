// project on a CPU. A task owns a run of tiles; a tile is a block of positions of one sample, small enough that the student's and
// the teachers' values of the tile, widened, and the residual stay in the L2 cache: memory carries each feature once. All
// arithmetic is one register-blocked product, C += A B, with the columns of B and C in vectors and A read element by element:
//     residual [d, p] -= W [d, c] s [c, p]        student gradient [c, p] = Wᵀ [c, d] r [d, p]        weight gradient [d, c] += r [d, p] sᵀ [p, c]
// Results don't depend on the number of threads: errors add up by tile, weight gradients by task, in a fixed order, in double.
namespace abckd::cpu::ABCKD_ISA {

template <typename A>
struct Blocks {  // of registers: rows x vectors accumulators
  static constexpr int kRows = ABCKD_VECTOR_BYTES == 64 ? 8 : 6;
  static constexpr int kVectors = 2;
};

// The lanes x lanes matrix in `rows`, transposed: at each step the two off-diagonal quarters of all blocks change places.
template <typename A, int64_t kStep, size_t... kLane>
inline void swap_quarters(Vec<A>* rows, std::index_sequence<kLane...>) {
  constexpr int64_t n = sizeof...(kLane);
  for (int64_t i = 0; i < n; ++i) {
    if (i & kStep) continue;
    const Vec<A> upper = rows[i], lower = rows[i + kStep];
#if defined(__clang__)
    rows[i] = __builtin_shufflevector(upper, lower, (kLane & kStep ? n + kLane - kStep : kLane)...);
    rows[i + kStep] = __builtin_shufflevector(upper, lower, (kLane & kStep ? n + kLane : kLane + kStep)...);
#else
    using Bits = typename Vector<A>::BitsType;
    rows[i] = __builtin_shuffle(upper, lower, Bits{(kLane & kStep ? n + kLane - kStep : kLane)...});
    rows[i + kStep] = __builtin_shuffle(upper, lower, Bits{(kLane & kStep ? n + kLane : kLane + kStep)...});
#endif
  }
}

template <typename A, int64_t kStep = Vector<A>::kLanes / 2>
inline void transpose(Vec<A>* rows) {
  swap_quarters<A, kStep>(rows, std::make_index_sequence<Vector<A>::kLanes>());
  if constexpr (kStep > 1) transpose<A, kStep / 2>(rows);
}

// C [kRows, kVectors] += A [kRows, depth] B [depth, kVectors], each with its own distance between rows.
template <typename A, int kRows, int kVectors>
inline void block_product(const A* a, int64_t a_stride, const A* b, int64_t b_stride, int64_t depth, A* c, int64_t c_stride) {
  constexpr int64_t kLanes = Vector<A>::kLanes;
  Vec<A> total[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) total[i][v] = load(c + i * c_stride + v * kLanes);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec<A> row[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) row[v] = load(b + k * b_stride + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const Vec<A> value = Vec<A>{} + a[i * a_stride + k];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) total[i][v] += value * row[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) store(c + i * c_stride + v * kLanes, total[i][v]);
  }
}

inline int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// The same for any number of rows and columns; rows are padded to a multiple of kRows, columns to one of the lanes.
template <typename A>
inline void product(const A* a, int64_t a_stride, const A* b, int64_t b_stride, int64_t rows, int64_t depth, int64_t columns, A* c,
                    int64_t c_stride) {
  constexpr int kRows = Blocks<A>::kRows, kVectors = Blocks<A>::kVectors;
  constexpr int64_t kLanes = Vector<A>::kLanes;
  int64_t j = 0;
  for (; j + (kVectors - 1) * kLanes < columns; j += kVectors * kLanes) {
    for (int64_t i = 0; i < rows; i += kRows) {
      block_product<A, kRows, kVectors>(a + i * a_stride, a_stride, b + j, b_stride, depth, c + i * c_stride + j, c_stride);
    }
  }
  for (; j < columns; j += kLanes) {
    for (int64_t i = 0; i < rows; i += kRows) {
      block_product<A, kRows, 1>(a + i * a_stride, a_stride, b + j, b_stride, depth, c + i * c_stride + j, c_stride);
    }
  }
}

// with_storage for dtypes whose accumulator is A, as every feature's is here: the others need no code.
template <typename A, typename Function>
inline void with_storage_of(Dtype dtype, const Function& function) {
  with_storage(dtype, [&](auto storage) {
    if constexpr (std::is_same_v<typename decltype(storage)::Accumulator, A>) function(storage);
  });
}

template <typename A>
struct Project {
  using V = Vec<A>;
  static constexpr int64_t kLanes = Vector<A>::kLanes;
  static constexpr int64_t kMostPositions = 256, kFewestPositions = 64;  // of a tile
  static constexpr int64_t kTileBytes = int64_t{512} << 10;
  static constexpr int64_t kPartialBytes = int64_t{8} << 20;  // of all tasks' weight gradients
  static constexpr int64_t kFewestTasks = 4, kMostTasks = 64;
  static constexpr int64_t kSerialProducts = 262144;  // less than this is done before a second thread wakes up

  struct Tile {
    int64_t sample, begin, end, valid;  // positions [begin, end), those before `valid` count
    int64_t count() const { return valid - begin; }
  };

  // Sizes that follow from the arguments alone.
  struct Plan {
    const ProjectArguments& a;
    int64_t positions, block, tiles_per_sample, tiles, tasks;
    int64_t student_rows, teacher_rows, student_columns;  // channels, padded to blocks of rows, or to vectors
    int64_t stride;  // between rows of a tile; not a power of two, which would put them all into the same few sets of the cache

    Plan(const ProjectArguments& arguments, bool has_partials) : a(arguments), positions(a.frames * a.bands) {
      student_columns = rounded_up(a.student_channels, kLanes);
      student_rows = std::max(rounded_up(a.student_channels, Blocks<A>::kRows), student_columns);
      teacher_rows = rounded_up(a.teacher_channels, Blocks<A>::kRows);
      block = kMostPositions;
      while (block > kFewestPositions && block * (3 * student_rows + teacher_rows) * int64_t(sizeof(A)) > kTileBytes) block /= 2;
      block = std::min(block, rounded_up(positions, kLanes));
      stride = block + kLanes;
      tiles_per_sample = (positions + block - 1) / block;
      tiles = a.batch * tiles_per_sample;
      const int64_t most = has_partials ? kPartialBytes / (partial_size() * int64_t(sizeof(A))) : kMostTasks;
      tasks = std::min(tiles, std::min(kMostTasks, std::max(kFewestTasks, most)));
    }

    // The gradients of weight and bias that a task adds up.
    int64_t partial_size() const { return teacher_rows * student_columns + a.teacher_channels; }

    Tile tile(int64_t number) const {
      const int64_t sample = number / tiles_per_sample, begin = number % tiles_per_sample * block;
      const int64_t frames = valid_frames(a.padding, sample, a.frames);
      const int64_t end = std::min(begin + block, positions);
      return {sample, begin, end, std::min(std::max(frames * a.bands, begin), end)};
    }
  };

  // What a task works in: zero at first, so that rows of padding stay zero.
  struct Memory {
    std::unique_ptr<A[]> values;
    A *student, *residual, *transposed, *gradient;

    Memory(const Plan& plan, bool backward) {
      const int64_t student_size = plan.student_rows * plan.stride, residual_size = plan.teacher_rows * plan.stride;
      const int64_t transposed_size = backward ? plan.block * plan.student_columns : 0;
      values.reset(new A[student_size + residual_size + transposed_size + (backward ? student_size : 0)]());
      student = values.get();
      residual = student + student_size;
      transposed = residual + residual_size;
      gradient = transposed + transposed_size;
    }
  };

  // Calls take(channel, offset, vector) for all values that count of a tile of a feature; lanes behind the last are zero.
  template <typename Take>
  static void read_tile(const ProjectFeature& feature, const Plan& plan, const Tile& tile, int64_t channels, const Take& take) {
    with_storage_of<A>(feature.dtype, [&](auto storage) {
      using S = decltype(storage);
      const auto* x = static_cast<const typename S::Element*>(feature.x) + tile.sample * channels * plan.positions;
      const int64_t count = tile.count();
      if (!feature.channels_last) {
        for (int64_t c = 0; c < channels; ++c) {
          const auto* row = x + c * plan.positions + tile.begin;
          int64_t p = 0;
          for (; p + kLanes <= count; p += kLanes) take(c, p, S::read(row + p));
          if (p < count) take(c, p, read_some<S>(row + p, count - p));
        }
        return;
      }
      for (int64_t p = 0; p < count; p += kLanes) {
        const int64_t few = std::min(kLanes, count - p);
        for (int64_t c = 0; c < channels; c += kLanes) {
          const int64_t width = std::min(kLanes, channels - c);
          V rows[kLanes] = {};
          for (int64_t i = 0; i < few; ++i) {
            const auto* row = x + (tile.begin + p + i) * channels + c;
            rows[i] = width == kLanes ? S::read(row) : read_some<S>(row, width);
          }
          transpose<A>(rows);
          for (int64_t i = 0; i < width; ++i) take(c + i, p, rows[i]);
        }
      }
    });
  }

  // The student's values and the residual of a tile, zero behind its last position.
  static void residual(const ProjectArguments& a, const Plan& plan, const A* weight, const Tile& tile, Memory& memory) {
    const int64_t stride = plan.stride, count = tile.count(), columns = rounded_up(count, kLanes);
    read_tile(a.student, plan, tile, a.student_channels, [&](int64_t c, int64_t p, V x) { store(memory.student + c * stride + p, x); });
    for (int64_t j = 0; j < a.teacher_count; ++j) {
      const A share = a.attention == nullptr ? A(1) : static_cast<const A*>(a.attention)[tile.sample * a.teacher_count + j];
      read_tile(a.teachers[j], plan, tile, a.teacher_channels, [&](int64_t d, int64_t p, V x) {
        A* target = memory.residual + d * stride + p;
        const V before = j > 0 ? load(target) : V{} + (a.bias == nullptr ? A(0) : static_cast<const A*>(a.bias)[d]);
        store(target, before - x * share);
      });
    }
    for (int64_t d = 0; d < plan.teacher_rows; ++d) {
      A* row = memory.residual + d * stride;
      std::fill(row + (d < a.teacher_channels ? count : 0), row + columns, A(0));
    }
    product<A>(weight, a.student_channels, memory.student, stride, plan.teacher_rows, a.student_channels, columns, memory.residual, stride);
  }

  static double squares(const A* values, int64_t stride, int64_t rows, int64_t columns) {
    double total = 0;
    for (int64_t d = 0; d < rows; ++d) {
      V squares{};
      for (int64_t p = 0; p < columns; p += kLanes) {
        const V value = load(values + d * stride + p);
        squares += value * value;
      }
      total += double(sum<A>(squares));
    }
    return total;
  }

  // The weight with rows of zeros behind it, or its transpose likewise.
  static std::unique_ptr<A[]> packed_weight(const ProjectArguments& a, int64_t padded_rows, bool transposed) {
    const A* weight = static_cast<const A*>(a.weight);
    const int64_t rows = transposed ? a.student_channels : a.teacher_channels;
    const int64_t depth = transposed ? a.teacher_channels : a.student_channels;
    std::unique_ptr<A[]> result(new A[padded_rows * depth]());
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t k = 0; k < depth; ++k) result[i * depth + k] = weight[transposed ? k * rows + i : i * depth + k];
    }
    return result;
  }

  template <typename Work>  // work(task, first tile, last tile + 1)
  static void run_tasks(const Plan& plan, Threads threads, const Work& work) {
    const ProjectArguments& a = plan.a;
    if (a.batch * plan.positions * a.student_channels * a.teacher_channels < kSerialProducts) threads.count = 1;
    for_each_task(threads, plan.tasks, [&](int64_t task) {
      work(task, task * plan.tiles / plan.tasks, (task + 1) * plan.tiles / plan.tasks);
    });
  }

  static void forward(const ProjectArguments& a, Threads threads) {
    const Plan plan(a, false);
    const std::unique_ptr<A[]> weight = packed_weight(a, plan.teacher_rows, false);
    const std::unique_ptr<double[]> errors(new double[plan.tiles]);
    run_tasks(plan, threads, [&](int64_t, int64_t first, int64_t last) {
      Memory memory(plan, false);
      for (int64_t number = first; number < last; ++number) {
        const Tile tile = plan.tile(number);
        if (tile.count() > 0) residual(a, plan, weight.get(), tile, memory);
        errors[number] = squares(memory.residual, plan.stride, a.teacher_channels, rounded_up(tile.count(), kLanes));
      }
    });
    for (int64_t b = 0; b < a.batch; ++b) {
      double total = 0;
      for (int64_t i = 0; i < plan.tiles_per_sample; ++i) total += errors[b * plan.tiles_per_sample + i];
      static_cast<A*>(a.errors)[b] = A(total);
    }
  }

  static void backward(const ProjectBackwardArguments& arguments, Threads threads) {
    const ProjectArguments& a = arguments.forward;
    const Plan plan(a, arguments.weight_grad != nullptr);
    const std::unique_ptr<A[]> weight = packed_weight(a, plan.teacher_rows, false);
    const std::unique_ptr<A[]> transposed_weight = packed_weight(a, plan.student_rows, true);
    const bool has_partials = arguments.weight_grad != nullptr || arguments.bias_grad != nullptr;
    const std::unique_ptr<A[]> partials(new A[has_partials ? plan.tasks * plan.partial_size() : 0]());
    const std::unique_ptr<double[]> shares(new double[arguments.attention_grad == nullptr ? 0 : plan.tiles * a.teacher_count]());
    const bool streaming = a.batch * a.student_channels * plan.positions * element_bytes(a.student.dtype) > kStreamBytes;
    run_tasks(plan, threads, [&](int64_t task, int64_t first, int64_t last) {
      Memory memory(plan, true);
      A* partial = partials.get() + task * plan.partial_size();
      for (int64_t number = first; number < last; ++number) {
        const Tile tile = plan.tile(number);
        if (tile.count() > 0) {
          residual(a, plan, weight.get(), tile, memory);
          scale_residual(arguments, plan, tile, memory);
          if (arguments.weight_grad != nullptr) add_weight_grad(plan, tile, memory, partial);
          if (arguments.bias_grad != nullptr) add_bias_grad(plan, tile, memory, partial + plan.teacher_rows * plan.student_columns);
          if (arguments.attention_grad != nullptr) add_shares(plan, tile, memory, shares.get() + number * a.teacher_count);
        }
        if (arguments.student_grad != nullptr) {
          student_grad(arguments, plan, transposed_weight.get(), tile, memory, streaming);
        }
      }
      if (streaming) fence();
    });
    if (has_partials) reduce_partials(arguments, plan, partials.get());
    if (arguments.attention_grad == nullptr) return;
    for (int64_t i = 0; i < a.batch * a.teacher_count; ++i) {
      double total = 0;
      for (int64_t k = 0; k < plan.tiles_per_sample; ++k) {
        total += shares[(i / a.teacher_count * plan.tiles_per_sample + k) * a.teacher_count + i % a.teacher_count];
      }
      static_cast<A*>(arguments.attention_grad)[i] = A(-total);
    }
  }

 private:
  static void scale_residual(const ProjectBackwardArguments& arguments, const Plan& plan, const Tile& tile, Memory& memory) {
    const A scale = 2 * static_cast<const A*>(arguments.error_grads)[tile.sample];
    for (int64_t d = 0; d < plan.a.teacher_channels; ++d) {
      A* row = memory.residual + d * plan.stride;
      for (int64_t p = 0; p < tile.count(); p += kLanes) store(row + p, load(row + p) * scale);
    }
  }

  static void add_weight_grad(const Plan& plan, const Tile& tile, Memory& memory, A* partial) {
    for (int64_t p = 0; p < tile.count(); p += kLanes) {
      for (int64_t c = 0; c < plan.student_columns; c += kLanes) {
        V rows[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) rows[i] = load(memory.student + (c + i) * plan.stride + p);
        transpose<A>(rows);
        for (int64_t i = 0; i < kLanes; ++i) store(memory.transposed + (p + i) * plan.student_columns + c, rows[i]);
      }
    }
    product<A>(memory.residual, plan.stride, memory.transposed, plan.student_columns, plan.teacher_rows, tile.count(),
               plan.student_columns, partial, plan.student_columns);
  }

  static void add_bias_grad(const Plan& plan, const Tile& tile, const Memory& memory, A* partial) {
    for (int64_t d = 0; d < plan.a.teacher_channels; ++d) {
      V total{};
      for (int64_t p = 0; p < tile.count(); p += kLanes) total += load(memory.residual + d * plan.stride + p);
      partial[d] += sum<A>(total);
    }
  }

  // sum r t_j of each teacher; its values of this tile come from the cache.
  static void add_shares(const Plan& plan, const Tile& tile, const Memory& memory, double* shares) {
    for (int64_t j = 0; j < plan.a.teacher_count; ++j) {
      V total{};
      int64_t row = 0;
      read_tile(plan.a.teachers[j], plan, tile, plan.a.teacher_channels, [&](int64_t d, int64_t p, V x) {
        if (d != row) {
          shares[j] += double(sum<A>(total));
          total = V{};
          row = d;
        }
        total += x * load(memory.residual + d * plan.stride + p);
      });
      shares[j] += double(sum<A>(total));
    }
  }

  static void student_grad(const ProjectBackwardArguments& arguments, const Plan& plan, const A* transposed_weight, const Tile& tile,
                           Memory& memory, bool streaming) {
    const ProjectArguments& a = arguments.forward;
    const int64_t size = tile.end - tile.begin, columns = rounded_up(size, kLanes), channels = a.student_channels;
    for (int64_t c = 0; c < plan.student_rows; ++c) std::fill_n(memory.gradient + c * plan.stride, columns, A(0));
    if (tile.count() > 0) {
      product<A>(transposed_weight, a.teacher_channels, memory.residual, plan.stride, rounded_up(channels, Blocks<A>::kRows),
                 a.teacher_channels, rounded_up(tile.count(), kLanes), memory.gradient, plan.stride);
    }
    with_storage_of<A>(a.student.dtype, [&](auto storage) {
      using S = decltype(storage);
      auto* result = static_cast<typename S::Element*>(arguments.student_grad) + tile.sample * channels * plan.positions;
      if (!a.student.channels_last) {
        for (int64_t c = 0; c < channels; ++c) {
          auto* row = result + c * plan.positions + tile.begin;
          write_row<S>(row, memory.gradient + c * plan.stride, size, streaming);
        }
        return;
      }
      for (int64_t p = 0; p < size; p += kLanes) {
        for (int64_t c = 0; c < channels; c += kLanes) {
          V rows[kLanes];
          for (int64_t i = 0; i < kLanes; ++i) rows[i] = load(memory.gradient + (c + i) * plan.stride + p);
          transpose<A>(rows);
          const int64_t width = std::min(kLanes, channels - c);
          for (int64_t i = 0; i < std::min(kLanes, size - p); ++i) {
            auto* row = result + (tile.begin + p + i) * channels + c;
            width == kLanes ? S::write(row, rows[i]) : write_some<S>(row, rows[i], width);
          }
        }
      }
    });
  }

  template <typename S>
  static void write_row(typename S::Element* row, const A* values, int64_t count, bool streaming) {
    constexpr uintptr_t kBytes = kLanes * sizeof(*row);
    const bool aligned = reinterpret_cast<uintptr_t>(row) % kBytes == 0;
    int64_t p = 0;
    for (; p + kLanes <= count; p += kLanes) {
      streaming && aligned ? stream<S>(row + p, load(values + p)) : S::write(row + p, load(values + p));
    }
    if (p < count) write_some<S>(row + p, load(values + p), count - p);
  }

  static void reduce_partials(const ProjectBackwardArguments& arguments, const Plan& plan, const A* partials) {
    const ProjectArguments& a = arguments.forward;
    const auto total = [&](int64_t index) {
      double result = 0;
      for (int64_t task = 0; task < plan.tasks; ++task) result += double(partials[task * plan.partial_size() + index]);
      return A(result);
    };
    for (int64_t d = 0; d < a.teacher_channels; ++d) {
      for (int64_t c = 0; arguments.weight_grad != nullptr && c < a.student_channels; ++c) {
        static_cast<A*>(arguments.weight_grad)[d * a.student_channels + c] = total(d * plan.student_columns + c);
      }
      if (arguments.bias_grad != nullptr) {
        static_cast<A*>(arguments.bias_grad)[d] = total(plan.teacher_rows * plan.student_columns + d);
      }
    }
  }
};

static void project_forward(const ProjectArguments& arguments, Threads threads) {
  arguments.is_double ? Project<double>::forward(arguments, threads) : Project<float>::forward(arguments, threads);
}

static void project_backward(const ProjectBackwardArguments& arguments, Threads threads) {
  arguments.forward.is_double ? Project<double>::backward(arguments, threads) : Project<float>::backward(arguments, threads);
}

}  // namespace abckd::cpu::ABCKD_ISA
