// divergence on a CPU. Rows in memory (inner = 1): a task owns some rows and reads each in blocks that stay in L1, first for
// their maxima, then, if those rose, after one rescaling of the sums so far, for the sums. Planes (inner > 1): a task owns a
// block of positions, lane by lane, and does the same with a few classes at a time. Jensen-Shannon needs the normalisers first:
// it reads the task's row or positions once more, from L2 unless they are larger.
// Accumulation: float over a block of a row, double over blocks; float over the planes of a position; double for f64.
namespace abckd::cpu::ABCKD_ISA {

constexpr int64_t kRowBlock = 512;         // classes of a row that are summed in float
constexpr int64_t kPlaneBlock = 512;       // positions of a task
constexpr int64_t kPlanesAtOnce = 16;      // classes between two rescalings
constexpr int64_t kTaskLogits = 16384;     // of a task that owns whole rows, at least
constexpr int64_t kSerialLogits = 4096;    // fewer are done before a second thread wakes up

template <typename S>  // Storage
struct Divergence {
  using E = typename S::Element;
  using A = typename S::Accumulator;
  using V = Vec<A>;
  static constexpr int64_t kLanes = Vector<A>::kLanes;
  static constexpr A kInfinity = std::numeric_limits<A>::infinity();
  static constexpr A kLowest = std::numeric_limits<A>::lowest();

  static void forward(const DivergenceForwardArguments& a, Threads threads) {
    if (a.of.outer * a.of.classes * a.of.inner < kSerialLogits) threads.count = 1;
    const auto run = [&](auto kind) {
      if (a.of.inner == 1) {
        const int64_t rows = std::max<int64_t>(1, kTaskLogits / a.of.classes);
        for_each_task(threads, (a.of.outer + rows - 1) / rows, [&](int64_t task) {
          for (int64_t r = task * rows; r < std::min((task + 1) * rows, a.of.outer); ++r) forward_row<kind()>(a, r);
        });
      } else {
        const int64_t blocks = (a.of.inner + kPlaneBlock - 1) / kPlaneBlock;
        for_each_task(threads, a.of.outer * blocks, [&](int64_t task) {
          forward_planes<kind()>(a, task / blocks, task % blocks * kPlaneBlock);
        });
      }
    };
    with_kind(a.of.kind, run);
  }

  static void backward(const DivergenceBackwardArguments& a, Threads threads) {
    const int64_t elements = a.of.outer * a.of.classes * a.of.inner;
    if (elements < kSerialLogits) threads.count = 1;
    const bool streaming = elements * int64_t(sizeof(E)) > kStreamBytes;
    const auto run = [&](auto kind) {
      if (a.of.inner == 1) {
        const int64_t rows = std::max<int64_t>(1, kTaskLogits / a.of.classes);
        for_each_task(threads, (a.of.outer + rows - 1) / rows, [&](int64_t task) {
          for (int64_t r = task * rows; r < std::min((task + 1) * rows, a.of.outer); ++r) {
            streaming ? backward_row<kind(), true>(a, r) : backward_row<kind(), false>(a, r);
          }
          if (streaming) fence();
        });
      } else {
        const int64_t blocks = (a.of.inner + kPlaneBlock - 1) / kPlaneBlock;
        for_each_task(threads, a.of.outer * blocks, [&](int64_t task) {
          const int64_t first = task % blocks * kPlaneBlock;
          streaming ? backward_planes<kind(), true>(a, task / blocks, first)
                    : backward_planes<kind(), false>(a, task / blocks, first);
          if (streaming) fence();
        });
      }
    };
    with_kind(a.of.kind, run);
  }

 private:
  using Kind = DivergenceKind;

  template <typename Run>
  static void with_kind(Kind kind, const Run& run) {
    switch (kind) {
      case Kind::kl: return run(std::integral_constant<Kind, Kind::kl>{});
      case Kind::reverse_kl: return run(std::integral_constant<Kind, Kind::reverse_kl>{});
      case Kind::jsd: return run(std::integral_constant<Kind, Kind::jsd>{});
    }
  }

  static V larger(V x, V y) { return y > x ? y : x; }  // x where y is NaN

  // `few` lanes of logits, the others -inf: classes that are not there.
  static V read_logits(const E* source, int64_t few) {
    if (few >= kLanes) return S::read(source);
    V value = read_some<S>(source, few);
    for (int64_t lane = few; lane < kLanes; ++lane) value[lane] = -kInfinity;
    return value;
  }

  // Sums over classes of one network that weighs (p) against another (q), relative to maxima so far: of T = double over a
  // row, of T = V over planes. cross: sum of e^(p - max_p) ((p - max_p) - (q - max_q)), in logits, not yet over temperature.
  template <typename T>
  struct Sums {
    T max_p, max_q, sum_p, sum_q, cross;
  };

  // sums, relative to new maxima that are not smaller.
  template <typename T, typename Exponential>
  static void move(Sums<T>& sums, T max_p, T max_q, A scale, const Exponential& exp) {
    const T down_p = sums.max_p - max_p, down_q = sums.max_q - max_q, factor = exp(down_p * scale);
    const T moved = (sums.cross + sums.sum_p * (down_p - down_q)) * factor;
    sums.cross = sums.sum_p > 0 ? moved : T{};  // without a sum the old maximum is no logit, and its distance may be infinite
    sums.sum_p *= factor;
    sums.sum_q *= exp(down_q * scale);
    sums.max_p = max_p;
    sums.max_q = max_q;
  }

  using Mask = decltype(V{} < V{});

  // One vector's part of the sums, which are relative to sums.max_*. missing: where p can occur and q can't.
  template <bool kCross>
  static void add(Sums<V>& sums, Mask& missing, V p, V q, A scale) {
    const V below_p = p - sums.max_p, below_q = q - sums.max_q;
    const V weight = exponential(below_p * scale);
    sums.sum_p += weight;
    sums.sum_q += exponential(below_q * scale);
    if (kCross) {
      const V term = weight * (below_p - below_q);
      sums.cross += weight > 0 ? term : V{};
      missing |= (q == -kInfinity) & (p > -kInfinity);
    }
  }

  // What a row's probabilities are made of: log p = (x - max) * scale - log.
  struct Normalisers {
    V max_s, log_s, max_t, log_t;
  };

  struct Probabilities {
    V q, p, log_ratio;  // log(q / p)

    Probabilities(V s, V t, const Normalisers& n, A scale) {
      const V below_s = (s - n.max_s) * scale, below_t = (t - n.max_t) * scale;
      q = exponential(below_s - n.log_s);
      p = exponential(below_t - n.log_t);
      log_ratio = (below_s - below_t) - (n.log_s - n.log_t);
    }

    // log(q / m), and with `of_p` log(p / m); only where q (p) is not zero.
    V of_mixture(A beta, V* of_p = nullptr) const {
      const A least = std::numeric_limits<A>::min();
      const V mixture = beta * p + (1 - beta) * q, known = mixture < least ? V{} + least : mixture;
      const V most = p >= q ? p : q;
      const V log_most = logarithm(most / known);
      if (of_p != nullptr) *of_p = p >= q ? log_most : log_most - log_ratio;
      return p >= q ? log_most + log_ratio : log_most;
    }
  };

  static V times(V weight, V x) { return weight == 0 ? V{} : weight * x; }

  // ------------------------------------------------------------------------------------------ rows

  template <Kind kKind>
  static void forward_row(const DivergenceForwardArguments& a, int64_t r) {
    const int64_t classes = a.of.classes;
    const E* s = static_cast<const E*>(a.of.student) + r * classes;
    const E* t = static_cast<const E*>(a.of.teacher) + r * classes;
    const E* first = kKind == Kind::reverse_kl ? s : t;
    const E* second = kKind == Kind::reverse_kl ? t : s;
    const A scale = A(1 / a.of.temperature);
    Sums<double> sums{kLowest, kLowest, 0, 0, 0};
    Mask missing{};
    if (a.ignore == nullptr || !a.ignore[r]) {
      for (int64_t begin = 0; begin < classes; begin += kRowBlock) {
        const int64_t end = std::min(begin + kRowBlock, classes);
        Sums<V> block{V{} + A(sums.max_p), V{} + A(sums.max_q), V{}, V{}, V{}};
        for (int64_t k = begin; k < end; k += kLanes) {
          block.max_p = larger(block.max_p, read_logits(first + k, end - k));
          block.max_q = larger(block.max_q, read_logits(second + k, end - k));
        }
        const A max_p = largest(block.max_p), max_q = largest(block.max_q);
        if (max_p > sums.max_p || max_q > sums.max_q) {
          move<double>(sums, max_p, max_q, scale, [](double x) { return std::exp(x); });
        }
        block.max_p = V{} + max_p;
        block.max_q = V{} + max_q;
        for (int64_t k = begin; k < end; k += kLanes) {
          add<kKind != Kind::jsd>(block, missing, read_logits(first + k, end - k), read_logits(second + k, end - k), scale);
        }
        sums.sum_p += sum<A>(block.sum_p);
        sums.sum_q += sum<A>(block.sum_q);
        sums.cross += sum<A>(block.cross);
      }
    }
    const bool dead = sums.sum_p == 0 || sums.sum_q == 0;
    double log_p = kInfinity, log_q = kInfinity, value = 0, moment = 0;
    if (dead) {
      sums.max_p = sums.max_q = 0;
    } else {
      log_p = std::log(sums.sum_p);
      log_q = std::log(sums.sum_q);
      if constexpr (kKind == Kind::jsd) {
        const Normalisers n{V{} + A(sums.max_q), V{} + A(log_q), V{} + A(sums.max_p), V{} + A(log_p)};
        double of_p = 0;
        for (int64_t begin = 0; begin < classes; begin += kRowBlock) {
          const int64_t end = std::min(begin + kRowBlock, classes);
          V block_p{}, block_q{};
          for (int64_t k = begin; k < end; k += kLanes) {
            add_to_mixture(read_logits(s + k, end - k), read_logits(t + k, end - k), n, scale, A(a.of.beta), block_p, block_q);
          }
          of_p += sum<A>(block_p);
          moment += sum<A>(block_q);
        }
        value = a.of.beta * of_p + (1 - a.of.beta) * moment;
        moment = moment < 0 ? 0 : moment;
      } else {
        value = sums.cross / sums.sum_p * scale - (log_p - log_q);
        // A network that can't tell (NaN) says so even here.
        if (any(missing)) value = kInfinity + 0 * (sums.sum_p + sums.sum_q);
        moment = value < 0 ? 0 : value;
      }
      value = value < 0 ? 0 : value;
    }
    static_cast<A*>(a.values)[r] = A(value);
    if (a.saved == nullptr) return;
    A* saved = static_cast<A*>(a.saved) + r;
    const int64_t rows = a.of.outer;
    const bool swapped = kKind == Kind::reverse_kl;
    saved[kStudentMax * rows] = A(swapped ? sums.max_p : sums.max_q);
    saved[kStudentLog * rows] = A(swapped ? log_p : log_q);
    saved[kTeacherMax * rows] = A(swapped ? sums.max_q : sums.max_p);
    saved[kTeacherLog * rows] = A(swapped ? log_q : log_p);
    if (kKind != Kind::kl) saved[kMoment * rows] = A(moment);
  }

  static A largest(V x) {
    A result = x[0];
    for (int64_t lane = 1; lane < kLanes; ++lane) result = x[lane] > result ? x[lane] : result;
    return result;
  }

  static bool any(Mask mask) {
    bool result = false;
    for (int64_t lane = 0; lane < kLanes; ++lane) result |= mask[lane] != 0;
    return result;
  }

  static void add_to_mixture(V s, V t, const Normalisers& n, A scale, A beta, V& of_p, V& of_q) {
    const Probabilities at(s, t, n, scale);
    V log_p;
    const V log_q = at.of_mixture(beta, &log_p);
    of_p += times(at.p, log_p);
    of_q += times(at.q, log_q);
  }

  template <Kind kKind, bool kStream>
  static void backward_row(const DivergenceBackwardArguments& a, int64_t r) {
    const int64_t classes = a.of.classes, rows = a.of.outer;
    E* result = static_cast<E*>(a.result) + r * classes;
    const A* saved = static_cast<const A*>(a.saved) + r;
    if (saved[kStudentLog * rows] == kInfinity) {
      std::memset(result, 0, classes * sizeof(E));
      return;
    }
    const auto all = [&](int64_t number) { return V{} + saved[number * rows]; };
    const Normalisers n{all(kStudentMax), all(kStudentLog), all(kTeacherMax), all(kTeacherLog)};
    const V moment = kKind == Kind::kl ? V{} : all(kMoment), grad = V{} + static_cast<const A*>(a.value_grads)[r];
    const Slope<kKind> slope(a.of);
    run<kStream>(static_cast<const E*>(a.of.student) + r * classes, static_cast<const E*>(a.of.teacher) + r * classes, result,
                 classes, [&](V s, V t, int64_t) { return slope(s, t, n, moment, grad); });
  }

  // d value / d student logit, times the value's gradient.
  template <Kind kKind>
  struct Slope {
    A scale, beta;

    explicit Slope(const DivergenceArguments& of) : scale(A(1 / of.temperature)), beta(A(of.beta)) {}

    V operator()(V s, V t, const Normalisers& n, V moment, V grad) const {
      const Probabilities at(s, t, n, scale);
      grad *= scale;
      if constexpr (kKind == Kind::kl) return (at.q - at.p) * grad;
      if constexpr (kKind == Kind::reverse_kl) return times(at.q, at.log_ratio - moment) * grad;
      return times(at.q, at.of_mixture(beta) - moment) * (grad * (1 - beta));
    }
  };

  // result[i] = at(s[i], t[i], i) for i < count, vector by vector.
  template <bool kStream, typename At>
  static void run(const E* s, const E* t, E* result, int64_t count, const At& at) {
    const auto some = [&](int64_t i, int64_t few) {
      write_some<S>(result + i, at(read_logits(s + i, few), read_logits(t + i, few), i), few);
    };
    constexpr int64_t kBytes = kLanes * sizeof(E);
    int64_t i = 0;
    if (kStream) {
      const int64_t head = int64_t(-reinterpret_cast<uintptr_t>(result) % kBytes / sizeof(E));
      if (head > 0) some(0, i = std::min(head, count));
    }
    for (; i + kLanes <= count; i += kLanes) {
      const V fresh = at(S::read(s + i), S::read(t + i), i);
      kStream ? stream<S>(result + i, fresh) : S::write(result + i, fresh);
    }
    if (i < count) some(i, count - i);
  }

  // ------------------------------------------------------------------------------------------ planes

  struct alignas(64) Column {  // one number per position of the block, and what a last vector reads behind it
    A at[kPlaneBlock + kLanes];
  };

  template <Kind kKind>
  static void forward_planes(const DivergenceForwardArguments& a, int64_t outer, int64_t begin) {
    const int64_t classes = a.of.classes, inner = a.of.inner, count = std::min(kPlaneBlock, inner - begin);
    const int64_t offset = outer * classes * inner + begin, row = outer * inner + begin;
    const E* s = static_cast<const E*>(a.of.student) + offset;
    const E* t = static_cast<const E*>(a.of.teacher) + offset;
    const E* first = kKind == Kind::reverse_kl ? s : t;
    const E* second = kKind == Kind::reverse_kl ? t : s;
    const A scale = A(1 / a.of.temperature);
    Column max_p, max_q, sum_p, sum_q, cross, value, missing{};
    for (int64_t k = 0; k < classes; k += kPlanesAtOnce) {
      const int64_t few = std::min(kPlanesAtOnce, classes - k);
      for (int64_t i = 0; i < count; i += kLanes) {
        const E* of_p = first + k * inner + i;
        const E* of_q = second + k * inner + i;
        V most_p = V{} + kLowest, most_q = most_p;
        for (int64_t c = 0; c < few; ++c) {
          most_p = larger(most_p, read_logits(of_p + c * inner, count - i));
          most_q = larger(most_q, read_logits(of_q + c * inner, count - i));
        }
        Sums<V> sums{most_p, most_q, V{}, V{}, V{}};
        if (k > 0) {
          sums = {load(max_p.at + i), load(max_q.at + i), load(sum_p.at + i), load(sum_q.at + i), load(cross.at + i)};
          move<V>(sums, larger(sums.max_p, most_p), larger(sums.max_q, most_q), scale, [](V x) { return exponential(x); });
        }
        Mask lost{};
        for (int64_t c = 0; c < few; ++c) {
          add<kKind != Kind::jsd>(sums, lost, read_logits(of_p + c * inner, count - i), read_logits(of_q + c * inner, count - i),
                                  scale);
        }
        store(max_p.at + i, sums.max_p);
        store(max_q.at + i, sums.max_q);
        store(sum_p.at + i, sums.sum_p);
        store(sum_q.at + i, sums.sum_q);
        if (kKind != Kind::jsd) {
          store(cross.at + i, sums.cross);
          store(missing.at + i, lost ? V{} + A(1) : load(missing.at + i));
        }
      }
    }
    Column log_p, log_q, moment;
    for (int64_t i = 0; i < count; i += kLanes) {
      V weight_p = load(sum_p.at + i), weight_q = load(sum_q.at + i);
      V ignored{};
      for (int64_t lane = 0; a.ignore != nullptr && lane < std::min(kLanes, count - i); ++lane) {
        ignored[lane] = a.ignore[row + i + lane] ? A(1) : A(0);
      }
      const Mask dead = (weight_p == 0) | (weight_q == 0) | (ignored > 0);
      const V one = V{} + A(1), infinite = V{} + kInfinity;
      const V of_p = logarithm(dead ? one : weight_p), of_q = logarithm(dead ? one : weight_q);
      store(max_p.at + i, dead ? V{} : load(max_p.at + i));
      store(max_q.at + i, dead ? V{} : load(max_q.at + i));
      store(log_p.at + i, dead ? infinite : of_p);
      store(log_q.at + i, dead ? infinite : of_q);
      if (kKind != Kind::jsd) {
        V result = load(cross.at + i) / weight_p * scale - (of_p - of_q);
        result = load(missing.at + i) > 0 ? kInfinity + A(0) * (weight_p + weight_q) : result;
        result = dead ? V{} : (result < 0 ? V{} : result);
        store(value.at + i, result);
        store(moment.at + i, result);
      } else {
        store(value.at + i, V{});
        store(moment.at + i, V{});
      }
    }
    if (kKind == Kind::jsd) {
      for (int64_t k = 0; k < classes; ++k) {
        for (int64_t i = 0; i < count; i += kLanes) {
          const Normalisers n{load(max_q.at + i), load(log_q.at + i), load(max_p.at + i), load(log_p.at + i)};
          V of_p = load(value.at + i), of_q = load(moment.at + i);
          add_to_mixture(read_logits(s + k * inner + i, count - i), read_logits(t + k * inner + i, count - i), n, scale,
                         A(a.of.beta), of_p, of_q);
          store(value.at + i, of_p);
          store(moment.at + i, of_q);
        }
      }
      for (int64_t i = 0; i < count; i += kLanes) {
        const V of_q = load(moment.at + i);
        const V result = A(a.of.beta) * load(value.at + i) + A(1 - a.of.beta) * of_q;
        const Mask dead = load(log_p.at + i) == kInfinity;
        store(value.at + i, dead ? V{} : (result < 0 ? V{} : result));
        store(moment.at + i, dead ? V{} : (of_q < 0 ? V{} : of_q));
      }
    }
    const auto copy = [&](void* target, int64_t number, const Column& column) {
      std::copy_n(column.at, count, static_cast<A*>(target) + number * a.of.outer * inner + row);
    };
    copy(a.values, 0, value);
    if (a.saved == nullptr) return;
    const bool swapped = kKind == Kind::reverse_kl;
    copy(a.saved, kStudentMax, swapped ? max_p : max_q);
    copy(a.saved, kStudentLog, swapped ? log_p : log_q);
    copy(a.saved, kTeacherMax, swapped ? max_q : max_p);
    copy(a.saved, kTeacherLog, swapped ? log_q : log_p);
    if (kKind != Kind::kl) copy(a.saved, kMoment, moment);
  }

  template <Kind kKind, bool kStream>
  static void backward_planes(const DivergenceBackwardArguments& a, int64_t outer, int64_t begin) {
    const int64_t classes = a.of.classes, inner = a.of.inner, count = std::min(kPlaneBlock, inner - begin);
    const int64_t offset = outer * classes * inner + begin, row = outer * inner + begin;
    const A* saved = static_cast<const A*>(a.saved) + row;
    Column max_s, log_s, max_t, log_t, moment, grad;
    const auto copy = [&](Column& column, const A* source) {
      std::copy_n(source, count, column.at);
      std::fill(column.at + count, column.at + kPlaneBlock + kLanes, A(0));
    };
    copy(max_s, saved + kStudentMax * a.of.outer * inner);
    copy(log_s, saved + kStudentLog * a.of.outer * inner);
    copy(max_t, saved + kTeacherMax * a.of.outer * inner);
    copy(log_t, saved + kTeacherLog * a.of.outer * inner);
    if (kKind != Kind::kl) copy(moment, saved + kMoment * a.of.outer * inner);
    copy(grad, static_cast<const A*>(a.value_grads) + row);
    const Slope<kKind> slope(a.of);
    for (int64_t k = 0; k < classes; ++k) {
      const int64_t plane = offset + k * inner;
      run<kStream>(static_cast<const E*>(a.of.student) + plane, static_cast<const E*>(a.of.teacher) + plane,
                   static_cast<E*>(a.result) + plane, count, [&](V s, V t, int64_t i) {
                     const Normalisers n{load(max_s.at + i), load(log_s.at + i), load(max_t.at + i), load(log_t.at + i)};
                     const V own = slope(s, t, n, kKind == Kind::kl ? V{} : load(moment.at + i), load(grad.at + i));
                     return n.log_s == kInfinity ? V{} : own;
                   });
    }
  }
};

static void divergence_forward(const DivergenceForwardArguments& arguments, Threads threads) {
  with_storage(arguments.of.dtype, [&](auto storage) { Divergence<decltype(storage)>::forward(arguments, threads); });
}

static void divergence_backward(const DivergenceBackwardArguments& arguments, Threads threads) {
  with_storage(arguments.of.dtype, [&](auto storage) { Divergence<decltype(storage)>::backward(arguments, threads); });
}

}  // namespace abckd::cpu::ABCKD_ISA
