// gram on a CPU. A task owns a chunk of one group's columns and goes through it in blocks: the rows of a block are
// packed, widened and shifted, into a buffer that the caches hold, so that memory carries the feature once, whatever
// its strides. Forward multiplies tiles of rows with each other (the upper half of the symmetric matrix), each register
// an accumulator over every kLanes-th column of the block; backward multiplies panels of the matrix with the block.
// Accumulation: float over a block's columns (double for f64), double over blocks.
namespace abckd::cpu::ABCKD_ISA {

inline int64_t gram_columns(const GramArguments& a) { return a.outer * a.inner; }

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Columns packed at once: some 500 KB at most, and long enough to make the sums over lanes cheap. However many lanes
// there are, each adds at most 32 floats in a row, since the rounding errors of a longer sum would grow.
inline int64_t gram_block(const GramArguments& a) {
  constexpr int64_t kFloats = ABCKD_VECTOR_BYTES / sizeof(float);
  return std::max<int64_t>(8 * kFloats, std::min<int64_t>(32 * kFloats, 131072 / a.rows / 64 * 64));
}

// Columns of a task. The matrices of all tasks, in double, take at most a quarter of the feature's memory.
inline int64_t gram_chunk(const GramArguments& a) {
  const int64_t least = std::max(32 * a.rows / element_bytes(a.dtype), (int64_t{1} << 17) / a.rows);
  return round_up(std::min(least, gram_columns(a)), gram_block(a));
}

inline int64_t gram_chunks(const GramArguments& a) { return (gram_columns(a) + gram_chunk(a) - 1) / gram_chunk(a); }

inline int gram_threads(const GramArguments& a, Threads threads) {
  return a.groups * a.rows * gram_columns(a) < kSerialElements ? 1 : threads.count;
}

template <typename S>  // Storage
struct Gram {
  using E = typename S::Element;
  using A = typename S::Accumulator;
  using V = Vec<A>;
  static constexpr int64_t kLanes = Vector<A>::kLanes;
  // Registers of accumulators: 16 of 32, or 8 of 16, forward; 24 or 12 backward.
  static constexpr int kTileRows = ABCKD_VECTOR_BYTES == 64 ? 4 : 2;
  static constexpr int kTile = 4;
  static constexpr int kPanel = ABCKD_VECTOR_BYTES == 64 ? 8 : 4;
  static constexpr int kVectors = 3;

  static void forward(const GramArguments& a, Threads threads) {
    const int64_t chunks = gram_chunks(a), tiles = round_up(a.rows, kTile), matrix = tiles * tiles;
    std::unique_ptr<double[]> partial(new double[a.groups * chunks * matrix]);
    threads.count = gram_threads(a, threads);
    for_each_task(threads, a.groups * chunks, [&](int64_t task) {
      double* total = partial.get() + task * matrix;
      std::fill_n(total, matrix, 0.0);
      Packed packed(a, tiles);
      const E* x = static_cast<const E*>(a.x) + task / chunks * a.group_stride;
      for_each_block(a, task % chunks, [&](int64_t begin, int64_t end) {
        packed.fill(a, x, begin, end);
        const int64_t columns = round_up(end - begin, kLanes);
        for (int64_t j = 0; j < tiles; j += kTile) {
          for (int64_t i = 0; i < j + kTile; i += kTileRows) {
            add_tile(packed.row(i), packed.row(j), packed.stride, columns, total + i * tiles + j, tiles);
          }
        }
      });
    });
    for_each_task(threads, a.groups * a.rows, [&](int64_t task) {
      const int64_t group = task / a.rows, i = task % a.rows;
      double* result = a.grams + group * a.rows * a.rows;
      for (int64_t j = i; j < a.rows; ++j) {
        double total = 0;
        for (int64_t c = 0; c < chunks; ++c) total += partial[(group * chunks + c) * matrix + i * tiles + j];
        result[i * a.rows + j] = result[j * a.rows + i] = total;
      }
    });
  }

  static void backward(const GramBackwardArguments& b, Threads threads) {
    const GramArguments& a = b.gram;
    const int64_t chunks = gram_chunks(a), panels = round_up(a.rows, kPanel);
    const bool streaming = a.groups * a.rows * gram_columns(a) * int64_t(sizeof(E)) > kStreamBytes;
    threads.count = gram_threads(a, threads);
    for_each_task(threads, a.groups * chunks, [&](int64_t task) {
      const int64_t group = task / chunks;
      std::unique_ptr<A[]> matrix(new A[panels * a.rows]);
      pack_matrix(a, b.gram_grads + group * a.rows * a.rows, matrix.get());
      Packed packed(a, a.rows);
      std::unique_ptr<A[]> fresh(new A[kPanel * packed.stride]);
      const E* x = static_cast<const E*>(a.x) + group * a.group_stride;
      E* result = static_cast<E*>(b.result) + group * a.group_stride;
      for_each_block(a, task % chunks, [&](int64_t begin, int64_t end) {
        packed.fill(a, x, begin, end);
        for (int64_t i = 0; i < a.rows; i += kPanel) {
          multiply_panel(matrix.get() + i * a.rows, packed, a.rows, round_up(end - begin, kLanes), fresh.get());
          const int64_t rows = std::min<int64_t>(kPanel, a.rows - i);
          for_each_run(a, begin, end, [&](int64_t offset, int64_t column, int64_t count) {
            for (int64_t r = 0; r < rows; ++r) {
              E* target = result + (i + r) * a.row_stride + offset;
              const A* source = fresh.get() + r * packed.stride + column;
              streaming ? write<true>(target, source, count) : write<false>(target, source, count);
            }
          });
        }
      });
      if (streaming) fence();
    });
  }

 private:
  template <typename Visit>  // visit(begin, end) of each block of columns
  static void for_each_block(const GramArguments& a, int64_t chunk, const Visit& visit) {
    const int64_t last = std::min((chunk + 1) * gram_chunk(a), gram_columns(a));
    for (int64_t begin = chunk * gram_chunk(a); begin < last; begin += gram_block(a)) {
      visit(begin, std::min(begin + gram_block(a), last));
    }
  }

  template <typename Visit>  // visit(offset in memory, column within the block, count) of each contiguous run
  static void for_each_run(const GramArguments& a, int64_t begin, int64_t end, const Visit& visit) {
    for (int64_t k = begin; k < end;) {
      const int64_t o = k / a.inner, i = k % a.inner, count = std::min(a.inner - i, end - k);
      visit(o * a.outer_stride + i, k - begin, count);
      k += count;
    }
  }

  // A block of all rows as accumulators. Rows that don't exist and the columns up to a whole vector are zero.
  struct Packed {
    int64_t stride;
    std::unique_ptr<A[]> data;

    Packed(const GramArguments& a, int64_t rows)
        // A vector more than the block, for what is written behind the last run; the odd one keeps rows out of each
        // other's cache sets.
        : stride(gram_block(a) + 3 * kLanes), data(new A[rows * stride]) {
      std::fill(data.get() + a.rows * stride, data.get() + rows * stride, A(0));
    }

    A* row(int64_t r) { return data.get() + r * stride; }

    void fill(const GramArguments& a, const E* x, int64_t begin, int64_t end) {
      for_each_run(a, begin, end, [&](int64_t offset, int64_t column, int64_t count) {
        for (int64_t r = 0; r < a.rows; ++r) {
          const A* first = a.shifted && r > 0 ? row(0) + column : nullptr;
          first == nullptr ? read<false>(x + r * a.row_stride + offset, first, row(r) + column, count)
                           : read<true>(x + r * a.row_stride + offset, first, row(r) + column, count);
        }
      });
      const int64_t columns = end - begin, padding = round_up(columns, kLanes) - columns;
      for (int64_t r = 0; padding > 0 && r < a.rows; ++r) std::fill_n(row(r) + columns, padding, A(0));
    }
  };

  // Writes up to a vector more than `count`.
  template <bool kShift>
  static void read(const E* source, const A* first, A* target, int64_t count) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      const V value = S::read(source + i);
      store(target + i, kShift ? value - load(first + i) : value);
    }
    if (i < count) {
      const V value = read_some<S>(source + i, count - i);
      store(target + i, kShift ? value - load(first + i) : value);
    }
  }

  template <bool kStream>
  static void write(E* target, const A* source, int64_t count) {
    int64_t i = 0;
    if (kStream) {
      const int64_t head = int64_t(-reinterpret_cast<uintptr_t>(target) % (kLanes * sizeof(E)) / sizeof(E));
      if (head > 0) {
        i = std::min(head, count);
        write_some<S>(target, load(source), i);
      }
    }
    for (; i + kLanes <= count; i += kLanes) {
      kStream ? stream<S>(target + i, load(source + i)) : S::write(target + i, load(source + i));
    }
    if (i < count) write_some<S>(target + i, load(source + i), count - i);
  }

  // total[i][j] += row i of x . row j of y
  static void add_tile(const A* x, const A* y, int64_t stride, int64_t columns, double* total, int64_t total_stride) {
    V sums[kTileRows][kTile] = {};
    int64_t k = 0;
    do {
      V right[kTile];
      for (int j = 0; j < kTile; ++j) right[j] = load(y + j * stride + k);
      for (int i = 0; i < kTileRows; ++i) {
        const V left = load(x + i * stride + k);
        for (int j = 0; j < kTile; ++j) sums[i][j] += left * right[j];
      }
    } while ((k += kLanes) < columns);
    for (int i = 0; i < kTileRows; ++i) {
      for (int j = 0; j < kTile; ++j) total[i * total_stride + j] += double(sum<A>(sums[i][j]));
    }
  }

  // Panels [k][kPanel] of the symmetric matrix that the gradient of x has: rows that don't exist are zero. With a shift
  // z_0 = x_0, z_r = x_r - x_0 the first row also loses the sum of the others.
  static void pack_matrix(const GramArguments& a, const double* grad, A* matrix) {
    const int64_t rows = a.rows;
    for (int64_t i = 0; i < rows; i += kPanel) {
      for (int64_t k = 0; k < rows; ++k) {
        for (int64_t r = i; r < i + kPanel; ++r) {
          matrix[i * rows + k * kPanel + r - i] = r < rows ? A(grad[r * rows + k] + grad[k * rows + r]) : A(0);
        }
      }
    }
    for (int64_t k = 0; a.shifted && k < rows; ++k) {
      double total = grad[k] + grad[k * rows];
      for (int64_t r = 1; r < rows; ++r) total -= grad[r * rows + k] + grad[k * rows + r];
      matrix[k * kPanel] = A(total);
    }
  }

  static void multiply_panel(const A* matrix, Packed& packed, int64_t rows, int64_t columns, A* fresh) {
    int64_t k = 0;
    for (; k + kVectors * kLanes <= columns; k += kVectors * kLanes) {
      multiply<kVectors>(matrix, packed.row(0) + k, packed.stride, rows, fresh + k);
    }
    for (; k < columns; k += kLanes) multiply<1>(matrix, packed.row(0) + k, packed.stride, rows, fresh + k);
  }

  template <int kWidth>
  static void multiply(const A* matrix, const A* x, int64_t stride, int64_t rows, A* fresh) {
    V sums[kPanel][kWidth] = {};
    for (int64_t r = 0; r < rows; ++r) {
      V value[kWidth];
      for (int v = 0; v < kWidth; ++v) value[v] = load(x + r * stride + v * kLanes);
      for (int i = 0; i < kPanel; ++i) {
        const V factor = V{} + matrix[r * kPanel + i];
        for (int v = 0; v < kWidth; ++v) sums[i][v] += factor * value[v];
      }
    }
    for (int i = 0; i < kPanel; ++i) {
      for (int v = 0; v < kWidth; ++v) store(fresh + i * stride + v * kLanes, sums[i][v]);
    }
  }
};

static void gram_forward(const GramArguments& arguments, Threads threads) {
  with_storage(arguments.dtype, [&](auto storage) { Gram<decltype(storage)>::forward(arguments, threads); });
}

static void gram_backward(const GramBackwardArguments& arguments, Threads threads) {
  with_storage(arguments.gram.dtype, [&](auto storage) { Gram<decltype(storage)>::backward(arguments, threads); });
}

}  // namespace abckd::cpu::ABCKD_ISA
