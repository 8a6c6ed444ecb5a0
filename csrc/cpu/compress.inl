// compress on a CPU. A task owns one sample: its maps fit into the cache, so it passes over them four times (norms; products; errors;
// gradients) and memory carries them once.
namespace abckd::cpu::ABCKD_ISA {

template <typename A>
struct Compress {
  using V = Vec<A>;
  static constexpr int64_t kLanes = Vector<A>::kLanes;
  static constexpr double kEps = 1e-12;
  static constexpr int64_t kTile = 512;  // values whose error is held in L1

  static double dot(const A* x, const A* y, int64_t size) {
    V total[4] = {};
    int64_t i = 0;
    for (; i + 4 * kLanes <= size; i += 4 * kLanes) {
      for (int k = 0; k < 4; ++k) total[k] += load(x + i + k * kLanes) * load(y + i + k * kLanes);
    }
    double result = double(sum<A>((total[0] + total[1]) + (total[2] + total[3])));
    for (; i < size; ++i) result += double(x[i]) * double(y[i]);
    return result;
  }

  // Calls work<4>(first), work<2>(first) and work<1>(first) until all of [0, count) has had its turn: a value that several layers
  // need is then loaded once for four of them.
  template <typename Work>
  static void by_fours(int64_t count, const Work& work) {
    int64_t first = 0;
    for (; first + 4 <= count; first += 4) work(std::integral_constant<int, 4>{}, first);
    for (; first + 2 <= count; first += 2) work(std::integral_constant<int, 2>{}, first);
    for (; first < count; ++first) work(std::integral_constant<int, 1>{}, first);
  }

  // take(j, <x, map(j)>) for every j in [0, count).
  template <typename MapOf, typename Take>
  static void dots(const A* x, int64_t size, int64_t count, const MapOf& map_of, const Take& take) {
    by_fours(count, [&](auto width, int64_t first) {
      constexpr int kWidth = width;
      const A* maps[kWidth];
      for (int k = 0; k < kWidth; ++k) maps[k] = map_of(first + k);
      V total[kWidth] = {};
      int64_t i = 0;
      for (; i + kLanes <= size; i += kLanes) {
        const V value = load(x + i);
        for (int k = 0; k < kWidth; ++k) total[k] += value * load(maps[k] + i);
      }
      for (int k = 0; k < kWidth; ++k) {
        double result = double(sum<A>(total[k]));
        for (int64_t rest = i; rest < size; ++rest) result += double(x[rest]) * double(maps[k][rest]);
        take(first + k, result);
      }
    });
  }

  // y += the sum of scale(j) * map(j) over j in [0, count).
  template <typename MapOf, typename ScaleOf>
  static void add_scaled(A* y, int64_t size, int64_t count, const MapOf& map_of, const ScaleOf& scale_of) {
    by_fours(count, [&](auto width, int64_t first) {
      constexpr int kWidth = width;
      const A* maps[kWidth];
      A scales[kWidth];
      for (int k = 0; k < kWidth; ++k) maps[k] = map_of(first + k), scales[k] = scale_of(first + k);
      int64_t i = 0;
      for (; i + kLanes <= size; i += kLanes) {
        V value = load(y + i);
        for (int k = 0; k < kWidth; ++k) value += load(maps[k] + i) * scales[k];
        store(y + i, value);
      }
      for (; i < size; ++i) {
        for (int k = 0; k < kWidth; ++k) y[i] += maps[k][i] * scales[k];
      }
    });
  }

  // The normalised maps of one sample, [layer][group][value]; a group is what is normalised by itself: the map or a frame.
  struct Sample {
    int64_t groups, group_size;        // valid groups and values in each
    double inverse_groups;
    const A* const* maps;              // pooled, not normalised
    const A* inverse_norms;            // [layer][group]
    int64_t norm_stride;

    const A* map(int64_t layer, int64_t group) const { return maps[layer] + group * group_size; }
    A inverse_norm(int64_t layer, int64_t group) const { return inverse_norms[layer * norm_stride + group]; }
  };

  static void forward(const CompressArguments& a, Threads threads) {
    const int64_t layers = a.students + a.teachers, cells = a.grid_frames * a.grid_bands;
    if (a.batch * layers * cells < kSerialElements) threads.count = 1;
    for_each_task(threads, a.batch, [&](int64_t b) {
      const int64_t rows = valid_frames(a.padding, b, a.grid_frames);
      int64_t pooled = 0;
      const auto map_of = [&](int64_t l) -> const Map& {
        return l < a.students ? a.student_maps[l] : a.teacher_maps[l - a.students];
      };
      const auto on_grid = [&](const Map& map) { return map.frames == a.grid_frames && map.bands == a.grid_bands; };
      for (int64_t l = 0; l < layers; ++l) pooled += !on_grid(map_of(l));
      std::unique_ptr<A[]> scratch(new A[pooled * cells]);
      std::unique_ptr<const A*[]> maps(new const A*[layers]);
      for (int64_t l = 0, next = 0; l < layers; ++l) {
        const Map& map = map_of(l);
        maps[l] = static_cast<const A*>(map.data) + b * map.frames * map.bands;
        if (on_grid(map)) continue;
        A* target = scratch.get() + next++ * cells;
        pool(a, b, map, maps[l], target);
        maps[l] = target;
      }
      Sample sample;
      sample.groups = a.per_frame ? rows : 1;
      sample.group_size = a.per_frame ? a.grid_bands : rows * a.grid_bands;
      sample.inverse_groups = a.per_frame ? 1.0 / double(std::max<int64_t>(1, rows)) : 1.0;
      sample.maps = maps.get();
      sample.norm_stride = std::max<int64_t>(1, sample.groups);
      std::unique_ptr<A[]> inverse_norms(new A[layers * sample.norm_stride]);
      for (int64_t l = 0; l < layers; ++l) {
        for (int64_t g = 0; g < sample.groups; ++g) {
          const A* map = sample.map(l, g);
          const double norm = std::sqrt(dot(map, map, sample.group_size));
          inverse_norms[l * sample.norm_stride + g] = A(1.0 / std::max(norm, kEps));
        }
      }
      sample.inverse_norms = inverse_norms.get();
      for (int64_t i = 0; i < a.students; ++i) one_student(a, sample, b, i);
    });
  }

  // Mean over the valid positions of each window; cells of padded frames are left as they are: nobody reads them.
  static void pool(const CompressArguments& a, int64_t b, const Map& map, const A* source, A* target) {
    const int64_t rows = valid_frames(a.padding, b, a.grid_frames), frames = valid_frames(a.padding, b, map.frames);
    for (int64_t u = 0; u < rows; ++u) {
      const int64_t t0 = window_begin(u, map.frames, a.grid_frames);
      const int64_t t1 = std::min(window_end(u, map.frames, a.grid_frames), frames);
      for (int64_t v = 0; v < a.grid_bands; ++v) {
        const int64_t f0 = window_begin(v, map.bands, a.grid_bands), f1 = window_end(v, map.bands, a.grid_bands);
        A total = 0;
        for (int64_t t = t0; t < t1; ++t) {
          for (int64_t f = f0; f < f1; ++f) total += source[t * map.bands + f];
        }
        target[u * a.grid_bands + v] = total / A((t1 - t0) * (f1 - f0));
      }
    }
  }

  // What a student layer learns from: the teacher layers that its attention does not leave out.
  struct Mixture {
    int64_t student, count;
    std::unique_ptr<int64_t[]> teachers;
    const double *attention, *score_grads;  // of every teacher layer
  };

  static void one_student(const CompressArguments& a, const Sample& sample, int64_t b, int64_t i) {
    const int64_t m = a.teachers, pair = (b * a.students + i) * m;
    std::unique_ptr<double[]> memory(new double[4 * m]);
    double *products = memory.get(), *attention = products + m, *attention_grads = attention + m,
           *score_grads = attention_grads + m;
    for (int64_t j = 0; j < m; ++j) products[j] = a.scores == nullptr ? 0.0 : double(static_cast<const A*>(a.scores)[pair + j]);
    if (a.scores == nullptr) {
      for_each_tile(sample, [&](int64_t g, int64_t begin, int64_t size) {
        const double scale = double(sample.inverse_norm(i, g)) * sample.inverse_groups / a.temperature;
        dots(sample.map(i, g) + begin, size, m, [&](int64_t j) { return sample.map(a.students + j, g) + begin; },
             [&](int64_t j, double dot) { products[j] += dot * scale * double(sample.inverse_norm(a.students + j, g)); });
      });
    }
    softmax(products, a.mask == nullptr ? nullptr : a.mask + i * m, m, attention);
    for (int64_t j = 0; j < m; ++j) static_cast<A*>(a.attention)[pair + j] = A(attention[j]);
    Mixture mixture{i, 0, std::unique_ptr<int64_t[]>(new int64_t[m]), attention, score_grads};
    for (int64_t j = 0; j < m; ++j) {
      if (attention[j] != 0) mixture.teachers[mixture.count++] = j;
    }

    double distance = 0;
    for (int64_t j = 0; j < m; ++j) attention_grads[j] = 0;
    const bool gradients = a.attention_grads != nullptr;
    const int64_t cells = a.grid_frames * a.grid_bands;
    A* const result = gradients ? static_cast<A*>(a.map_grads) + (b * a.students + i) * cells : nullptr;
    for_each_tile(sample, [&](int64_t g, int64_t begin, int64_t size) {
      alignas(64) A tile[kTile];
      A* const error = gradients ? result + g * sample.group_size + begin : tile;  // map_grads needs it again
      error_of(a, sample, mixture, g, begin, size, error);
      distance += dot(error, error, size);
      if (!gradients) return;
      dots(error, size, m, [&](int64_t j) { return sample.map(a.students + j, g) + begin; }, [&](int64_t j, double dot) {
        attention_grads[j] -= 2 * dot * double(sample.inverse_norm(a.students + j, g));
      });
    });
    static_cast<A*>(a.distances)[b * a.students + i] = A(distance * sample.inverse_groups);
    if (!gradients) return;

    double mean_grad = 0;
    for (int64_t j = 0; j < m; ++j) {
      attention_grads[j] = attention[j] == 0 ? 0.0 : attention_grads[j] * sample.inverse_groups;
      static_cast<A*>(a.attention_grads)[pair + j] = A(attention_grads[j]);
      mean_grad += attention[j] * attention_grads[j];
    }
    for (int64_t j = 0; j < m; ++j) {
      score_grads[j] = a.scores != nullptr
          ? 0.0
          : attention[j] * (attention_grads[j] - mean_grad) * sample.inverse_groups / a.temperature;
    }
    map_grads(a, sample, mixture, result);
  }

  static void softmax(const double* scores, const bool* allowed, int64_t m, double* result) {
    double largest = -std::numeric_limits<double>::infinity(), total = 0;
    for (int64_t j = 0; j < m; ++j) {
      if (allowed == nullptr || allowed[j]) largest = std::max(largest, scores[j]);
    }
    for (int64_t j = 0; j < m; ++j) {
      result[j] = allowed == nullptr || allowed[j] ? std::exp(scores[j] - largest) : 0.0;
      total += result[j];
    }
    for (int64_t j = 0; j < m; ++j) result[j] /= total;
  }

  template <typename Tile>
  static void for_each_tile(const Sample& sample, const Tile& tile) {
    for (int64_t g = 0; g < sample.groups; ++g) {
      for (int64_t begin = 0; begin < sample.group_size; begin += kTile) {
        tile(g, begin, std::min(kTile, sample.group_size - begin));
      }
    }
  }

  // error = a_i - sum_j alpha_j a_j of a tile.
  static void error_of(const CompressArguments& a, const Sample& sample, const Mixture& of, int64_t g, int64_t begin,
                       int64_t size, A* error) {
    const A* const own = sample.map(of.student, g) + begin;
    const A inverse = sample.inverse_norm(of.student, g);
    for (int64_t p = 0; p < size; ++p) error[p] = own[p] * inverse;
    add_teachers(a, sample, of, g, begin, size, error, [&](int64_t j) { return A(-of.attention[j]); });
  }

  // y += the sum of scale(j) a_j of a tile.
  template <typename ScaleOf>
  static void add_teachers(const CompressArguments& a, const Sample& sample, const Mixture& of, int64_t g, int64_t begin,
                           int64_t size, A* y, const ScaleOf& scale_of) {
    const auto layer = [&](int64_t k) { return a.students + of.teachers[k]; };
    add_scaled(y, size, of.count, [&](int64_t k) { return sample.map(layer(k), g) + begin; },
               [&](int64_t k) { return scale_of(of.teachers[k]) * sample.inverse_norm(layer(k), g); });
  }

  // d distance_i / d A_i: through a_i itself, through the similarities, and back through the normalisation. Where it is written
  // lies the error of each value.
  static void map_grads(const CompressArguments& a, const Sample& sample, const Mixture& of, A* result) {
    const int64_t cells = a.grid_frames * a.grid_bands;
    const double error_scale = 2 * sample.inverse_groups;
    for (int64_t g = 0; g < sample.groups; ++g) {
      A* const grad = result + g * sample.group_size;
      const A* const map = sample.map(of.student, g);
      const A inverse = sample.inverse_norm(of.student, g);
      double radial = 0;
      for (int64_t begin = 0; begin < sample.group_size; begin += kTile) {
        const int64_t size = std::min(kTile, sample.group_size - begin);
        if (a.scores == nullptr) {
          add_teachers(a, sample, of, g, begin, size, grad + begin,
                       [&](int64_t j) { return A(of.score_grads[j] / error_scale); });
        }
        radial += dot(grad + begin, map + begin, size) * double(inverse);
      }
      // Below eps the norm is a constant, and its derivative zero.
      const A along = inverse >= A(1 / kEps) ? A(0) : A(radial) * inverse, scale = A(error_scale) * inverse;
      for (int64_t p = 0; p < sample.group_size; ++p) grad[p] = (grad[p] - map[p] * along) * scale;
    }
    const int64_t written = sample.groups * sample.group_size;
    std::fill(result + written, result + cells, A(0));
  }

  // The gradient of a distance spreads over each window: divided by the number of valid positions in it.
  static void backward(const CompressBackwardArguments& a, Threads threads) {
    const int64_t cells = a.grid_frames * a.grid_bands;
    if (a.batch * a.students * cells < kSerialElements) threads.count = 1;
    for_each_task(threads, a.batch * a.students, [&](int64_t task) {
      const int64_t b = task / a.students, i = task % a.students;
      const MapGrad& map = a.results[i];
      const A scale = static_cast<const A*>(a.distance_grads)[task];
      const A* source = static_cast<const A*>(a.map_grads) + task * cells;
      A* target = static_cast<A*>(map.data) + b * map.frames * map.bands;
      if (map.frames == a.grid_frames && map.bands == a.grid_bands) {
        for (int64_t p = 0; p < cells; ++p) target[p] = source[p] * scale;
        return;
      }
      const bool padded = a.padding.lengths != nullptr;
      const int64_t length = padded ? a.padding.lengths[b] : 0;
      const int64_t frames = padded ? valid_frames(length, map.frames, a.padding.padded_length) : map.frames;
      std::fill_n(target, map.frames * map.bands, A(0));
      for (int64_t u = 0; u < a.grid_frames; ++u) {
        const int64_t t0 = window_begin(u, map.frames, a.grid_frames);
        const int64_t t1 = std::min(window_end(u, map.frames, a.grid_frames), frames);
        for (int64_t v = 0; v < a.grid_bands; ++v) {
          const int64_t f0 = window_begin(v, map.bands, a.grid_bands), f1 = window_end(v, map.bands, a.grid_bands);
          const A share = source[u * a.grid_bands + v] * scale / A(std::max<int64_t>(1, t1 - t0) * (f1 - f0));
          for (int64_t t = t0; t < t1; ++t) {
            for (int64_t f = f0; f < f1; ++f) target[t * map.bands + f] += share;
          }
        }
      }
    });
  }
};

static void compress_forward(const CompressArguments& arguments, Threads threads) {
  arguments.is_double ? Compress<double>::forward(arguments, threads) : Compress<float>::forward(arguments, threads);
}

static void compress_backward(const CompressBackwardArguments& arguments, Threads threads) {
  arguments.is_double ? Compress<double>::backward(arguments, threads) : Compress<float>::backward(arguments, threads);
}

}  // namespace abckd::cpu::ABCKD_ISA
