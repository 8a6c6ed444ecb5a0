// tap on a CPU. A task owns one block of positions of one sample and walks through its channels: the energies of the block
// stay in the cache while the feature streams by, so that memory carries each feature once (forward), or feature, gradient
// and result once (backward). Channel sums: each task writes its own partial sums, added in a fixed order afterwards.
// On [b, c, p] a channel is a run of a few pages, at whose end the processor's own prefetching stops and waits for memory
// again: while one channel is read, the same positions of the next are asked for.
// Accumulation: float over the channels of a position and the positions of a lane, double over blocks; double for f64.
namespace abckd::cpu::ABCKD_ISA {

constexpr int64_t kMaxBlock = 8192;            // positions of a task, at most
constexpr int64_t kRowBlockElements = 65536;   // elements of a task on [b, p, c]

inline int64_t positions(const TapLayer& layer) { return layer.frames * layer.bands; }

inline int64_t block_size(const TapLayer& layer) {
  if (layer.channels_last) return std::min(kMaxBlock, std::max<int64_t>(16, kRowBlockElements / layer.channels));
  const int64_t count = (positions(layer) + kMaxBlock - 1) / kMaxBlock;  // blocks of equal size: no short runs at the end
  return (positions(layer) + 64 * count - 1) / (64 * count) * 64;
}

inline int64_t blocks(const TapLayer& layer) { return (positions(layer) + block_size(layer) - 1) / block_size(layer); }

// Where a task's number falls: which layer, sample and block of positions.
struct Place {
  int64_t layer, sample, block, begin, end, valid;  // positions [begin, end), those before `valid` count
};

inline const TapLayer& shape_of(const TapLayer& layer) { return layer; }
inline const TapLayer& shape_of(const TapBackwardLayer& layer) { return layer.layer; }

template <typename Layer>
Place place(int64_t task, const TapArguments<Layer>& a) {
  int64_t l = 0;
  for (; task >= a.batch * blocks(shape_of(a.layers[l])); ++l) task -= a.batch * blocks(shape_of(a.layers[l]));
  const TapLayer& layer = shape_of(a.layers[l]);
  const int64_t sample = task / blocks(layer), block = task % blocks(layer), begin = block * block_size(layer);
  const int64_t frames = valid_frames(a.padding, sample, layer.frames);
  return {l, sample, block, begin, std::min(begin + block_size(layer), positions(layer)), frames * layer.bands};
}

template <typename S, int kPower>  // S: Storage
struct Tap {
  using E = typename S::Element;
  using A = typename S::Accumulator;
  using V = Vec<A>;
  static constexpr int64_t kLanes = Vector<A>::kLanes;

  static V energy(V x) { return kPower == 2 ? x * x : magnitude<A>(x); }
  static V half_slope(V x) { return kPower == 2 ? x : sign<A>(x); }  // d energy / dx, over the power

  static void forward(const TapArguments<TapLayer>& a, Threads threads) {
    int64_t tasks = 0, elements = 0, partials = 0;
    std::unique_ptr<int64_t[]> partial_begin(new int64_t[a.count]);
    for (int64_t l = 0; l < a.count; ++l) {
      const TapLayer& layer = a.layers[l];
      tasks += a.batch * blocks(layer);
      elements += a.batch * layer.channels * positions(layer);
      partial_begin[l] = partials;
      if (layer.mean != nullptr) partials += a.batch * blocks(layer) * partial_stride(layer);
    }
    std::unique_ptr<A[]> partial(new A[partials]);
    if (elements < kSerialElements) threads.count = 1;
    for_each_task(threads, tasks, [&](int64_t task) {
      const Place at = place(task, a);
      const TapLayer& layer = a.layers[at.layer];
      A* sums = layer.mean == nullptr ? nullptr
          : partial.get() + partial_begin[at.layer] + (at.sample * blocks(layer) + at.block) * partial_stride(layer);
      const int64_t valid_end = std::min(std::max(at.valid, at.begin), at.end);
      const E* x = static_cast<const E*>(layer.x) + at.sample * layer.channels * positions(layer);
      A* map = static_cast<A*>(layer.map) + at.sample * positions(layer);
      if (sums != nullptr) std::fill_n(sums, partial_stride(layer), A(0));
      if (layer.channels_last) {
        sums != nullptr ? forward_rows<true>(layer, x, at.begin, valid_end, map, sums)
                        : forward_rows<false>(layer, x, at.begin, valid_end, map, sums);
      } else {
        sums != nullptr ? forward_planes<true>(layer, x, at.begin, valid_end, map, sums)
                        : forward_planes<false>(layer, x, at.begin, valid_end, map, sums);
      }
      std::fill(map + valid_end, map + at.end, A(0));
    });
    for (int64_t l = 0; l < a.count; ++l) {
      if (a.layers[l].mean != nullptr) add_partials(a, a.layers[l], partial.get() + partial_begin[l]);
    }
  }

  static void backward(const TapArguments<TapBackwardLayer>& a, Threads threads) {
    int64_t tasks = 0, elements = 0;
    for (int64_t l = 0; l < a.count; ++l) {
      const TapLayer& layer = shape_of(a.layers[l]);
      tasks += a.batch * blocks(layer);
      elements += a.batch * layer.channels * positions(layer);
    }
    if (elements < kSerialElements) threads.count = 1;
    const bool streaming = elements * int64_t(sizeof(E)) > kStreamBytes;
    for_each_task(threads, tasks, [&](int64_t task) {
      const Place at = place(task, a);
      const TapBackwardLayer& layer = a.layers[at.layer];
      if (layer.grad != nullptr) {
        streaming ? backward_block<true, true>(layer, at) : backward_block<true, false>(layer, at);
      } else {
        streaming ? backward_block<false, true>(layer, at) : backward_block<false, false>(layer, at);
      }
      if (streaming) fence();
    });
  }

 private:
  static int64_t partial_stride(const TapLayer& layer) { return (layer.channels + kLanes - 1) / kLanes * kLanes; }

  // Four channels at a time: the block's energies are read and written once for four reads of the feature.
  template <bool kMeans>
  static void forward_planes(const TapLayer& layer, const E* x, int64_t begin, int64_t end, A* map, A* sums) {
    alignas(64) A energies[kMaxBlock + kLanes];
    const int64_t size = positions(layer), channels = layer.channels, count = end - begin;
    std::fill_n(energies, count + kLanes, A(0));
    int64_t c = 0;
    for (; c + 4 <= channels; c += 4) {
      const int64_t ahead = c + 8 <= channels ? 4 * size : 0;
      add_planes<4, kMeans>(x + c * size + begin, size, count, ahead, energies, sums + c);
    }
    for (; c < channels; ++c) add_planes<1, kMeans>(x + c * size + begin, size, count, 0, energies, sums + c);
    const A scale = A(1) / A(channels);
    for (int64_t p = 0; p < count; ++p) map[begin + p] = energies[p] * scale;
  }

  template <int kPlanes, bool kMeans>
  static void add_planes(const E* x, int64_t size, int64_t count, int64_t ahead, A* energies, A* sums) {
    V plane_sums[kPlanes] = {};
    const auto add = [&](V* value, int64_t p) {
      V energy_sum = load(energies + p);
      for (int k = 0; k < kPlanes; ++k) {
        energy_sum += energy(value[k]);
        if (kMeans) plane_sums[k] += value[k];
      }
      store(energies + p, energy_sum);
    };
    V value[kPlanes];
    int64_t p = 0;
    for (; p + kLanes <= count; p += kLanes) {
      for (int k = 0; k < kPlanes; ++k) {
        prefetch(x + k * size + p, ahead, p);
        value[k] = S::read(x + k * size + p);
      }
      add(value, p);
    }
    if (p < count) {
      for (int k = 0; k < kPlanes; ++k) value[k] = read_some<S>(x + k * size + p, count - p);
      add(value, p);
    }
    if (kMeans) {
      for (int k = 0; k < kPlanes; ++k) sums[k] = sum<A>(plane_sums[k]);
    }
  }

  // Asks for the cache line `ahead` elements behind `x`, once per line; 0: for none.
  static void prefetch(const E* x, int64_t ahead, int64_t p) {
    if (ahead != 0 && p % int64_t(kCacheLine / sizeof(E)) == 0) __builtin_prefetch(x + ahead, 0, 2);
  }

  template <bool kMeans>
  static void forward_rows(const TapLayer& layer, const E* x, int64_t begin, int64_t end, A* map, A* sums) {
    const int64_t channels = layer.channels;
    const A scale = A(1) / A(channels);
    for (int64_t p = begin; p < end; ++p) {
      const E* row = x + p * channels;
      V energy_sum{};
      int64_t c = 0;
      for (; c + kLanes <= channels; c += kLanes) {
        const V value = S::read(row + c);
        energy_sum += energy(value);
        if (kMeans) store(sums + c, load(sums + c) + value);
      }
      if (c < channels) {
        const V value = read_some<S>(row + c, channels - c);
        energy_sum += energy(value);
        if (kMeans) store(sums + c, load(sums + c) + value);
      }
      map[p] = sum<A>(energy_sum) * scale;
    }
  }

  static void add_partials(const TapArguments<TapLayer>& a, const TapLayer& layer, const A* partial) {
    const int64_t stride = partial_stride(layer);
    for (int64_t b = 0; b < a.batch; ++b) {
      const int64_t frames = valid_frames(a.padding, b, layer.frames);
      const double scale = 1.0 / double(std::max<int64_t>(1, frames * layer.bands));
      for (int64_t c = 0; c < layer.channels; ++c) {
        double total = 0;
        for (int64_t block = 0; block < blocks(layer); ++block) total += partial[(b * blocks(layer) + block) * stride + c];
        static_cast<A*>(layer.mean)[b * layer.channels + c] = A(total * scale);
      }
    }
  }

  template <bool kGrad, bool kStream>
  static void backward_block(const TapBackwardLayer& layer, const Place& at) {
    const TapLayer& shape = layer.layer;
    const int64_t offset = at.sample * shape.channels * positions(shape);
    const E* x = static_cast<const E*>(shape.x) + offset;
    const E* grad = kGrad ? static_cast<const E*>(layer.grad) + offset : nullptr;
    E* result = static_cast<E*>(layer.result) + offset;
    const int64_t valid_end = std::min(std::max(at.valid, at.begin), at.end);
    const A* mean_grads = static_cast<const A*>(shape.mean);
    if (mean_grads != nullptr) mean_grads += at.sample * shape.channels;
    const A mean_scale = A(1) / A(std::max<int64_t>(1, at.valid));
    // What multiplies half_slope(x) at each position of the block.
    alignas(64) A map_grads[kMaxBlock + kLanes];
    const A map_scale = A(kPower) / A(shape.channels);
    for (int64_t p = at.begin; p < at.end; ++p) {
      map_grads[p - at.begin] = shape.map == nullptr || p >= valid_end
          ? A(0)
          : static_cast<const A*>(shape.map)[at.sample * positions(shape) + p] * map_scale;
    }
    if (shape.channels_last) {
      const int64_t stride = partial_stride(shape);
      // One vector more than the channels need: behind an alignment head, the last load starts in the middle of one.
      std::unique_ptr<A[]> shifts(new A[stride + kLanes]);
      for (int64_t c = 0; c < stride + kLanes; ++c) {
        shifts[c] = mean_grads == nullptr || c >= shape.channels ? A(0) : mean_grads[c] * mean_scale;
      }
      for (int64_t p = at.begin; p < at.end; ++p) {
        const int64_t row = p * shape.channels;
        const V map_grad = V{} + map_grads[p - at.begin];
        run<kGrad, kStream>(x + row, kGrad ? grad + row : nullptr, result + row, shape.channels, 0, p < valid_end,
                            [&](int64_t) { return map_grad; }, [&](int64_t c) { return load(shifts.get() + c); });
      }
      return;
    }
    for (int64_t c = 0; c < shape.channels; ++c) {
      const int64_t plane = c * positions(shape), ahead = c + 1 < shape.channels ? positions(shape) : 0;
      const V shift = V{} + (mean_grads == nullptr ? A(0) : mean_grads[c] * mean_scale);
      for (const bool valid : {true, false}) {
        const int64_t begin = valid ? at.begin : valid_end, end = valid ? valid_end : at.end;
        run<kGrad, kStream>(x + plane + begin, kGrad ? grad + plane + begin : nullptr, result + plane + begin, end - begin,
                            ahead, valid, [&](int64_t p) { return load(map_grads + (begin - at.begin) + p); },
                            [&](int64_t) { return shift; });
      }
    }
  }

  // `count` neighbouring elements: result = grad + half_slope(x) * map_grad + shift, or grad alone where they don't count.
  template <bool kGrad, bool kStream, typename MapGradAt, typename ShiftAt>
  static void run(const E* x, const E* grad, E* result, int64_t count, int64_t ahead, bool valid,
                  const MapGradAt& map_grad_at, const ShiftAt& shift_at) {
    const auto value = [&](V at_x, V at_grad, int64_t i) {
      const V own = valid ? half_slope(at_x) * map_grad_at(i) + shift_at(i) : V{};
      return kGrad ? at_grad + own : own;
    };
    const auto some = [&](int64_t i, int64_t few) {
      const V at_grad = kGrad ? read_some<S>(grad + i, few) : V{};
      write_some<S>(result + i, value(read_some<S>(x + i, few), at_grad, i), few);
    };
    constexpr int64_t kBytes = kLanes * sizeof(E);
    int64_t i = 0;
    if (kStream) {
      const int64_t head = int64_t(-reinterpret_cast<uintptr_t>(result) % kBytes / sizeof(E));
      if (head > 0) some(0, i = std::min(head, count));
    }
    const int64_t first = i;
    for (; i + kLanes <= count; i += kLanes) {
      prefetch(x + i, ahead, i - first);
      if (kGrad) prefetch(grad + i, ahead, i - first);
      const V fresh = value(S::read(x + i), kGrad ? S::read(grad + i) : V{}, i);
      kStream ? stream<S>(result + i, fresh) : S::write(result + i, fresh);
    }
    if (i < count) some(i, count - i);
  }
};

// Calls function(Tap<...>{}) for the features' dtype and the power.
template <typename Layer, typename Function>
inline void with_tap(const TapArguments<Layer>& arguments, const Function& function) {
  with_storage(arguments.dtype, [&](auto storage) {
    using S = decltype(storage);
    arguments.power == 2 ? function(Tap<S, 2>{}) : function(Tap<S, 1>{});
  });
}

static void tap_forward(const TapArguments<TapLayer>& arguments, Threads threads) {
  with_tap(arguments, [&](auto tap) { tap.forward(arguments, threads); });
}

static void tap_backward(const TapArguments<TapBackwardLayer>& arguments, Threads threads) {
  with_tap(arguments, [&](auto tap) { tap.backward(arguments, threads); });
}

}  // namespace abckd::cpu::ABCKD_ISA
