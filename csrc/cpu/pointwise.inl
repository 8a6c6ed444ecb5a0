// pointwise on a CPU: one pass over student and teacher (and a third feature where the kind has one), forward to sums, backward to
// gradients. A task owns neighbouring elements of one sample: on [b, c, p] pieces of planes, on [b, p, c] a block of positions.
// Sums: each task writes its own partial sums, added in a fixed order afterwards. Accumulation: float over the positions of a lane
// of one piece, double over pieces; double for f64.
namespace abckd::cpu::ABCKD_ISA {

// Which f: value f(s, t), slopes df/ds and df/dthird. Comparisons are such that what is not a number stays that.
namespace kinds {

template <typename A>
struct Operands {
  Vec<A> s, t, third, channel;
};

template <typename A>
struct Slopes {
  Vec<A> student, third;
};

// x >= 0 ? x : 0
template <typename A>
inline Vec<A> positive(Vec<A> x) {
  return x < Vec<A>{} ? Vec<A>{} : x;
}

template <typename A>
struct Squared {
  static constexpr bool kThird = false;
  explicit Squared(double) {}
  Vec<A> value(const Operands<A>& x) const { return (x.s - x.t) * (x.s - x.t); }
  Slopes<A> slopes(const Operands<A>& x) const { return {A(2) * (x.s - x.t), Vec<A>{}}; }
};

template <typename A>
struct Power {
  static constexpr bool kThird = false;
  A exponent;
  bool by_products;

  explicit Power(double exponent) : exponent(A(exponent)), by_products(exponent == std::floor(exponent) && exponent <= 8) {}

  Vec<A> value(const Operands<A>& x) const { return raised(magnitude<A>(x.s - x.t), exponent); }
  Slopes<A> slopes(const Operands<A>& x) const {
    const Vec<A> d = x.s - x.t, zero{}, slope = exponent * raised(magnitude<A>(d), exponent - A(1)) * sign<A>(d);
    return {d == zero ? zero : (d == d ? slope : d), Vec<A>{}};
  }

 private:
  Vec<A> raised(Vec<A> base, A to) const {
    Vec<A> result = by_products ? Vec<A>{} + A(1) : base;
    if (by_products) {
      for (A factors = 0; factors < to; ++factors) result *= base;
    } else {
      for (int64_t lane = 0; lane < Vector<A>::kLanes; ++lane) result[lane] = std::pow(base[lane], to);
    }
    return result;
  }
};

template <typename A>
struct Rectified {
  static constexpr bool kThird = false;
  explicit Rectified(double) {}
  Vec<A> value(const Operands<A>& x) const {
    const Vec<A> d = positive<A>(x.s) - x.t;
    return d * d;
  }
  Slopes<A> slopes(const Operands<A>& x) const {
    const Vec<A> zero{}, slope = A(2) * (x.s - x.t);
    return {x.s <= zero ? zero : slope, zero};
  }
};

template <typename A>
struct Boundary {
  static constexpr bool kThird = false;
  A margin;
  explicit Boundary(double margin) : margin(A(margin)) {}
  Vec<A> value(const Operands<A>& x) const {
    const Vec<A> beyond = positive<A>(x.t > Vec<A>{} ? margin - x.s : x.s + margin);
    return beyond * beyond;
  }
  Slopes<A> slopes(const Operands<A>& x) const {
    const Vec<A> twice = A(2) * positive<A>(x.t > Vec<A>{} ? margin - x.s : x.s + margin);
    return {x.t > Vec<A>{} ? -twice : twice, Vec<A>{}};
  }
};

template <typename A>
struct Margin {
  static constexpr bool kThird = false;
  explicit Margin(double) {}
  static Vec<A> distance(const Operands<A>& x) {
    const Vec<A> zero{}, target = x.t < x.channel ? x.channel : x.t, d = x.s - target;
    return x.t > zero ? d : (x.s <= target ? zero : d);
  }
  Vec<A> value(const Operands<A>& x) const {
    const Vec<A> d = distance(x);
    return d * d;
  }
  Slopes<A> slopes(const Operands<A>& x) const { return {A(2) * distance(x), Vec<A>{}}; }
};

template <typename A>
struct Heteroscedastic {
  static constexpr bool kThird = true;
  A eps;
  explicit Heteroscedastic(double eps) : eps(A(eps)) {}
  // e^80 beyond 80, as good as infinite below a square.
  static Vec<A> variance(Vec<A> logarithm) {
    const Vec<A> most = Vec<A>{} + A(80);
    return exponential(logarithm > most ? most : logarithm);
  }
  Vec<A> value(const Operands<A>& x) const {
    const Vec<A> d = x.t - x.s;
    return d * d / (eps + variance(x.third)) + x.third;
  }
  Slopes<A> slopes(const Operands<A>& x) const {
    const Vec<A> d = x.s - x.t, e = variance(x.third), inverse = A(1) / (eps + e);
    return {A(2) * d * inverse, A(1) - d * d * inverse * (e * inverse)};
  }
};

}  // namespace kinds

constexpr int64_t kPieceElements = 8192;  // of a plane that add up in float
constexpr int64_t kTaskElements = 32768;
constexpr int64_t kRowsAtOnce = 8;  // rows of [b, p, c] that a vector of channels adds up before it goes back to memory

template <typename S, template <typename> class Kind>  // S: Storage
struct Pointwise {
  using E = typename S::Element;
  using A = typename S::Accumulator;
  using V = Vec<A>;
  using Operands = kinds::Operands<A>;
  using Function = Kind<A>;
  static constexpr int64_t kLanes = Vector<A>::kLanes;

  struct Source {
    const E *s, *t, *third;

    Source(const PointwiseArguments& a, int64_t offset)
        : s(static_cast<const E*>(a.student) + offset),
          t(static_cast<const E*>(a.teacher) + offset),
          third(Function::kThird ? static_cast<const E*>(a.third) + offset : nullptr) {}

    Operands read(int64_t i, V channel) const {
      return {S::read(s + i), S::read(t + i), Function::kThird ? S::read(third + i) : V{}, channel};
    }
    Operands read_some(int64_t i, int64_t few, V channel) const {
      return {cpu::ABCKD_ISA::read_some<S>(s + i, few), cpu::ABCKD_ISA::read_some<S>(t + i, few),
              Function::kThird ? cpu::ABCKD_ISA::read_some<S>(third + i, few) : V{}, channel};
    }
  };

  static int64_t positions(const PointwiseArguments& a) { return a.frames * a.bands; }
  static int64_t elements(const PointwiseArguments& a) { return a.batch * a.channels * positions(a); }
  static int64_t valid_positions(const PointwiseArguments& a, int64_t sample) {
    return valid_frames(a.padding, sample, a.frames) * a.bands;
  }

  // [b, c, p]: pieces of each plane, numbered through, and how many of them a task takes.
  static int64_t pieces(const PointwiseArguments& a) { return (positions(a) + kPieceElements - 1) / kPieceElements; }
  static int64_t pieces_of_task(const PointwiseArguments& a) {
    return std::max<int64_t>(1, kTaskElements / std::min(positions(a), kPieceElements));
  }

  template <typename Visit>  // visit(piece, sample, channel, begin, valid_end, end), positions of the plane
  static void for_each_piece(const PointwiseArguments& a, Threads threads, const Visit& visit) {
    const int64_t all = a.batch * a.channels * pieces(a), at_once = pieces_of_task(a);
    for_each_task(threads, (all + at_once - 1) / at_once, [&](int64_t task) {
      for (int64_t piece = task * at_once; piece < std::min(all, (task + 1) * at_once); ++piece) {
        const int64_t plane = piece / pieces(a), sample = plane / a.channels, begin = piece % pieces(a) * kPieceElements;
        const int64_t end = std::min(begin + kPieceElements, positions(a));
        visit(piece, sample, plane % a.channels, begin, std::min(std::max(valid_positions(a, sample), begin), end), end);
      }
    });
  }

  // [b, p, c]: blocks of positions.
  static int64_t block_size(const PointwiseArguments& a) { return std::max(kRowsAtOnce, kTaskElements / a.channels); }
  static int64_t blocks(const PointwiseArguments& a) { return (positions(a) + block_size(a) - 1) / block_size(a); }

  template <typename Visit>  // visit(block of all samples, sample, begin, valid_end, end)
  static void for_each_block(const PointwiseArguments& a, Threads threads, const Visit& visit) {
    for_each_task(threads, a.batch * blocks(a), [&](int64_t task) {
      const int64_t sample = task / blocks(a), begin = task % blocks(a) * block_size(a);
      const int64_t end = std::min(begin + block_size(a), positions(a));
      visit(task, sample, begin, std::min(std::max(valid_positions(a, sample), begin), end), end);
    });
  }

  // One value per channel, followed by enough zeros that a vector may begin at any channel.
  static std::unique_ptr<A[]> by_channel(const PointwiseArguments& a, const void* values) {
    std::unique_ptr<A[]> padded(new A[a.channels + kLanes]());
    if (values != nullptr) std::copy_n(static_cast<const A*>(values), a.channels, padded.get());
    return padded;
  }

  static void forward(const PointwiseArguments& a, Threads threads) {
    if (elements(a) < kSerialElements) threads.count = 1;
    const Function f(a.parameter);
    const auto channels = by_channel(a, a.per_channel);
    A* sums = static_cast<A*>(a.sums);
    if (a.channels_last) {
      const int64_t stride = a.channels + kLanes;
      std::unique_ptr<A[]> partial(new A[a.batch * blocks(a) * stride]);
      for_each_block(a, threads, [&](int64_t task, int64_t sample, int64_t begin, int64_t valid_end, int64_t) {
        A* own = partial.get() + task * stride;
        std::fill_n(own, stride, A(0));
        add_rows(f, Source(a, sample * a.channels * positions(a)), a.channels, begin, valid_end, channels.get(), own);
      });
      for (int64_t b = 0; b < a.batch; ++b) {
        for (int64_t c = 0; c < a.channels; ++c) {
          const A* first = partial.get() + b * blocks(a) * stride + c;
          sums[b * a.channels + c] = add(first, blocks(a), stride);
        }
      }
      return;
    }
    std::unique_ptr<A[]> partial(new A[a.batch * a.channels * pieces(a)]);
    for_each_piece(a, threads, [&](int64_t piece, int64_t sample, int64_t c, int64_t begin, int64_t valid_end, int64_t) {
      const Source source(a, (sample * a.channels + c) * positions(a) + begin);
      partial[piece] = sum_run(f, source, V{} + channels[c], valid_end - begin);
    });
    for (int64_t plane = 0; plane < a.batch * a.channels; ++plane) {
      sums[plane] = add(partial.get() + plane * pieces(a), pieces(a), 1);
    }
  }

  static void backward(const PointwiseBackwardArguments& backward, Threads threads) {
    elements(backward.operands) * int64_t(sizeof(E)) > kStreamBytes ? backward_as<true>(backward, threads)
                                                                  : backward_as<false>(backward, threads);
  }

 private:
  static A add(const A* values, int64_t count, int64_t stride) {
    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += double(values[i * stride]);
    return A(total);
  }

  static A sum_run(const Function& f, const Source& source, V channel, int64_t count) {
    V sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
      for (int k = 0; k < 4; ++k) sums[k] += f.value(source.read(i + k * kLanes, channel));
    }
    for (; i + kLanes <= count; i += kLanes) sums[0] += f.value(source.read(i, channel));
    if (i < count) {
      V value = f.value(source.read_some(i, count - i, channel));
      for (int64_t lane = count - i; lane < kLanes; ++lane) value[lane] = 0;  // f(0, 0) need not be 0
      sums[1] += value;
    }
    return sum<A>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }

  static void add_rows(const Function& f, const Source& source, int64_t channels, int64_t begin, int64_t end, const A* per_channel,
                       A* sums) {
    for (int64_t p = begin; p < end; p += kRowsAtOnce) {
      const int64_t rows = std::min(kRowsAtOnce, end - p);
      int64_t c = 0;
      for (; c + kLanes <= channels; c += kLanes) {
        const V channel = load(per_channel + c);
        V total{};
        for (int64_t row = 0; row < rows; ++row) total += f.value(source.read((p + row) * channels + c, channel));
        store(sums + c, load(sums + c) + total);
      }
      if (c == channels) continue;
      const V channel = load(per_channel + c);
      V total{};
      for (int64_t row = 0; row < rows; ++row) {
        total += f.value(source.read_some((p + row) * channels + c, channels - c, channel));
      }
      store(sums + c, load(sums + c) + total);
    }
  }

  struct Target {
    E *student, *third;

    Target(const PointwiseBackwardArguments& a, int64_t offset)
        : student(static_cast<E*>(a.student_result) + offset),
          third(Function::kThird ? static_cast<E*>(a.third_result) + offset : nullptr) {}
  };

  template <bool kStream>
  static void backward_as(const PointwiseBackwardArguments& backward, Threads threads) {
    const PointwiseArguments& a = backward.operands;
    if (elements(a) < kSerialElements) threads.count = 1;
    const Function f(a.parameter);
    const auto channels = by_channel(a, a.per_channel);
    const A* grads = static_cast<const A*>(backward.grad);
    if (a.channels_last) {
      for_each_block(a, threads, [&](int64_t, int64_t sample, int64_t begin, int64_t valid_end, int64_t end) {
        const auto own = by_channel(a, grads + sample * a.channels);
        for (int64_t p = begin; p < end; ++p) {
          const int64_t offset = (sample * positions(a) + p) * a.channels;
          run<kStream>(f, Source(a, offset), Target(backward, offset), a.channels, p < valid_end,
                       [&](int64_t c) { return load(own.get() + c); }, [&](int64_t c) { return load(channels.get() + c); });
        }
        if (kStream) fence();
      });
      return;
    }
    for_each_piece(a, threads, [&](int64_t, int64_t sample, int64_t c, int64_t begin, int64_t valid_end, int64_t end) {
      const int64_t plane = sample * a.channels + c, offset = plane * positions(a);
      const V grad = V{} + grads[plane], channel = V{} + channels[c];
      const auto part = [&](int64_t first, int64_t last, bool valid) {
        run<kStream>(f, Source(a, offset + first), Target(backward, offset + first), last - first, valid,
                     [&](int64_t) { return grad; }, [&](int64_t) { return channel; });
      };
      part(begin, valid_end, true);
      part(valid_end, end, false);
      if (kStream) fence();
    });
  }

  // `count` neighbouring elements: the gradient of the sum times the slopes, or zero where they don't count.
  template <bool kStream, typename GradAt, typename ChannelAt>
  static void run(const Function& f, const Source& source, const Target& target, int64_t count, bool valid, const GradAt& grad_at,
                  const ChannelAt& channel_at) {
    const auto some = [&](int64_t i, int64_t few) {
      const V grad = grad_at(i);
      const auto slopes = valid ? f.slopes(source.read_some(i, few, channel_at(i))) : kinds::Slopes<A>{};
      write_some<S>(target.student + i, valid ? grad * slopes.student : V{}, few);
      if (Function::kThird) write_some<S>(target.third + i, valid ? grad * slopes.third : V{}, few);
    };
    constexpr int64_t kBytes = kLanes * sizeof(E);
    int64_t i = 0;
    if (kStream) {  // both results begin at multiples of 64 bytes, so that one head aligns both
      const int64_t head = int64_t(-reinterpret_cast<uintptr_t>(target.student) % kBytes / sizeof(E));
      if (head > 0 && count > 0) some(0, i = std::min(head, count));
    }
    const auto write = [](E* to, V value) { kStream ? stream<S>(to, value) : S::write(to, value); };
    for (; i + kLanes <= count; i += kLanes) {
      kinds::Slopes<A> slopes{};
      if (valid) {
        const V grad = grad_at(i);
        slopes = f.slopes(source.read(i, channel_at(i)));
        slopes = {grad * slopes.student, grad * slopes.third};
      }
      write(target.student + i, slopes.student);
      if (Function::kThird) write(target.third + i, slopes.third);
    }
    if (i < count) some(i, count - i);
  }
};

// Calls function(Pointwise<...>{}) for the operands' dtype and kind.
template <typename Function>
inline void with_pointwise(const PointwiseArguments& operands, const Function& function) {
  with_storage(operands.dtype, [&](auto storage) {
    using S = decltype(storage);
    switch (operands.kind) {
      case PointwiseKind::squared: return function(Pointwise<S, kinds::Squared>{});
      case PointwiseKind::power: return function(Pointwise<S, kinds::Power>{});
      case PointwiseKind::rectified: return function(Pointwise<S, kinds::Rectified>{});
      case PointwiseKind::boundary: return function(Pointwise<S, kinds::Boundary>{});
      case PointwiseKind::margin: return function(Pointwise<S, kinds::Margin>{});
      case PointwiseKind::heteroscedastic: return function(Pointwise<S, kinds::Heteroscedastic>{});
    }
  });
}

static void pointwise_forward(const PointwiseArguments& arguments, Threads threads) {
  with_pointwise(arguments, [&](auto pointwise) { pointwise.forward(arguments, threads); });
}

static void pointwise_backward(const PointwiseBackwardArguments& arguments, Threads threads) {
  with_pointwise(arguments.operands, [&](auto pointwise) { pointwise.backward(arguments, threads); });
}

}  // namespace abckd::cpu::ABCKD_ISA
