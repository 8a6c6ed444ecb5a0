// spectral on a CPU. A task owns one block of bins of one sample: forward reads both spectra once, backward reads both once
// and writes the gradient once. Pairs become vectors of re and of im in registers; powers are those of power.inl.
// Accumulation: float over the bins of a lane, double over blocks; double for f64.
namespace abckd::cpu::ABCKD_ISA {

constexpr int64_t kSpectralBlock = 8192;         // bins of a task
constexpr int64_t kSpectralSerial = 4096;        // fewer bins than this are done before a second thread wakes up

template <typename S>  // Storage
struct Spectral {
  using E = typename S::Element;
  using A = typename S::Accumulator;
  using V = Vec<A>;
  using Ints = typename Logarithm<A>::Ints;
  static constexpr int64_t kLanes = Vector<A>::kLanes;

  struct Bins {
    V re, im;
  };
  struct Compressed {
    V power, magnitude, factor;  // m^2, m^c, m^(c-1)
  };

  const SpectralArguments& a;
  const Power<A> of_magnitude{a.exponent / 2}, of_factor{(a.exponent - 1) / 2};

  static void forward(const SpectralArguments& a, Threads threads) { Spectral{a}.forward(threads); }
  static void backward(const SpectralArguments& a, Threads threads) { Spectral{a}.backward(threads); }

 private:
  int64_t blocks() const { return (a.bins + kSpectralBlock - 1) / kSpectralBlock; }

  int64_t valid_in_run(int64_t sample) const {
    return valid_frames(a.padding, sample, a.frames) * a.inner;
  }

  // Calls work(first, last, counts) for stretches of the block's bins that count, or don't.
  template <typename Work>
  void for_each_stretch(int64_t sample, int64_t block, const Work& work) const {
    const int64_t begin = block * kSpectralBlock, end = std::min(begin + kSpectralBlock, a.bins);
    const int64_t valid = valid_in_run(sample), run = a.run();
    if (valid == run) return work(begin, end, true);
    for (int64_t first = begin / run * run; first < end; first += run) {
      const int64_t from = std::max(first, begin), border = std::max(std::min(first + valid, end), from);
      const int64_t to = std::min(first + run, end);
      if (border > from) work(from, border, true);
      if (to > border) work(border, to, false);
    }
  }

  double share(int64_t sample) const {  // 1 / bins that count
    return 1.0 / double(std::max<int64_t>(1, a.bins / a.run() * valid_in_run(sample)));
  }

  void forward(Threads threads) const {
    if (a.batch * a.bins < kSpectralSerial) threads.count = 1;
    std::unique_ptr<double[]> partial(new double[2 * a.batch * blocks()]);
    for_each_task(threads, a.batch * blocks(), [&](int64_t task) {
      const int64_t sample = task / blocks();
      double magnitude = 0, complex = 0;
      for_each_stretch(sample, task % blocks(), [&](int64_t first, int64_t last, bool counts) {
        if (!counts) return;
        const int64_t offset = 2 * (sample * a.bins + first);
        add_errors(static_cast<const E*>(a.student) + offset, static_cast<const E*>(a.teacher) + offset, last - first,
                   magnitude, complex);
      });
      partial[2 * task] = magnitude;
      partial[2 * task + 1] = complex;
    });
    for (int64_t sample = 0; sample < a.batch; ++sample) {
      double magnitude = 0, complex = 0;
      for (int64_t task = sample * blocks(); task < (sample + 1) * blocks(); ++task) {
        magnitude += partial[2 * task];
        complex += partial[2 * task + 1];
      }
      static_cast<A*>(a.magnitude)[sample] = A(magnitude * share(sample));
      static_cast<A*>(a.complex)[sample] = A(complex * share(sample));
    }
  }

  void backward(Threads threads) const {
    if (a.batch * a.bins < kSpectralSerial) threads.count = 1;
    const bool streaming = 2 * a.batch * a.bins * int64_t(sizeof(E)) > kStreamBytes;
    for_each_task(threads, a.batch * blocks(), [&](int64_t task) {
      const int64_t sample = task / blocks();
      const A by_magnitude = A(2 * a.exponent * share(sample) * static_cast<const A*>(a.magnitude)[sample]);
      const A by_pair = A(2 * share(sample) * static_cast<const A*>(a.complex)[sample]);
      for_each_stretch(sample, task % blocks(), [&](int64_t first, int64_t last, bool counts) {
        const int64_t offset = 2 * (sample * a.bins + first);
        const E* student = static_cast<const E*>(a.student) + offset;
        const E* teacher = static_cast<const E*>(a.teacher) + offset;
        E* result = static_cast<E*>(a.result) + offset;
        if (!counts) {
          std::fill_n(result, 2 * (last - first), E(0));
        } else if (streaming) {
          write_gradients<true>(student, teacher, result, last - first, by_magnitude, by_pair);
        } else {
          write_gradients<false>(student, teacher, result, last - first, by_magnitude, by_pair);
        }
      });
      if (streaming) fence();
    });
  }

  void add_errors(const E* student, const E* teacher, int64_t count, double& magnitude, double& complex) const {
    V magnitudes{}, pairs{};
    const auto add = [&](const Bins& s, const Bins& t) {
      const Compressed from = compressed(s), to = compressed(t);
      const V of_magnitudes = from.magnitude - to.magnitude;
      const Bins of_pairs = difference(s, from, t, to);
      magnitudes += of_magnitudes * of_magnitudes;
      pairs += of_pairs.re * of_pairs.re + of_pairs.im * of_pairs.im;
    };
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) add(read_bins(student + 2 * i), read_bins(teacher + 2 * i));
    if (i < count) add(read_some_bins(student + 2 * i, count - i), read_some_bins(teacher + 2 * i, count - i));
    magnitude += sum<A>(magnitudes);
    complex += sum<A>(pairs);
  }

  template <bool kStream>
  void write_gradients(const E* student, const E* teacher, E* result, int64_t count, A by_magnitude, A by_pair) const {
    const A by_along = by_pair * A(a.exponent - 1);
    const auto gradient = [&](const Bins& s, const Bins& t) -> Bins {
      const Compressed from = compressed(s), to = compressed(t);
      const Bins error = difference(s, from, t, to);
      const V of_magnitudes = by_magnitude * (from.magnitude - to.magnitude) * from.magnitude;
      const V along = (of_magnitudes + by_along * from.factor * (s.re * error.re + s.im * error.im)) / from.power;
      const V of_pairs = by_pair * from.factor;
      return {in_range(along * s.re + of_pairs * error.re), in_range(along * s.im + of_pairs * error.im)};
    };
    const auto some = [&](int64_t i, int64_t few) {
      write_some_bins(result + 2 * i, gradient(read_some_bins(student + 2 * i, few), read_some_bins(teacher + 2 * i, few)), few);
    };
    int64_t i = 0;
    if (kStream) {  // results are ours, and aligned to a pair
      const int64_t head = int64_t(-reinterpret_cast<uintptr_t>(result) % (kLanes * sizeof(E)) / (2 * sizeof(E)));
      if (head > 0) some(0, i = std::min(head, count));
    }
    for (; i + kLanes <= count; i += kLanes) {
      const Bins fresh = gradient(read_bins(student + 2 * i), read_bins(teacher + 2 * i));
      const V low = interleaved(fresh, 0), high = interleaved(fresh, kLanes / 2);
      kStream ? stream<S>(result + 2 * i, low) : S::write(result + 2 * i, low);
      kStream ? stream<S>(result + 2 * i + kLanes, high) : S::write(result + 2 * i + kLanes, high);
    }
    if (i < count) some(i, count - i);
  }

  // Half precision would turn what is too large into infinity. NaN stays NaN.
  static V in_range(V gradient) {
    if (!std::is_same_v<S, Storage<Dtype::f16>>) return gradient;
    const V largest = V{} + A(65504);
    return gradient > largest ? largest : (gradient < -largest ? -largest : gradient);
  }

  Compressed compressed(const Bins& z) const {
    const V power = z.re * z.re + z.im * z.im + A(a.eps);
    const Logarithm<A> logarithm(power);
    // power - power: zero, or NaN where the bin is not finite, which a logarithm does not tell.
    return {power, of_magnitude.of(logarithm) + (power - power), of_factor.of(logarithm)};
  }

  // s m_s^(c-1) - t m_t^(c-1), as (s - t) times the smaller factor and the rest: near s = t no digits are lost, and at s = t it
  // is zero even if products are fused with sums.
  static Bins difference(const Bins& s, const Compressed& from, const Bins& t, const Compressed& to) {
    const auto student_is_smaller = from.factor < to.factor;
    const V common = student_is_smaller ? from.factor : to.factor, factor = from.factor - to.factor;
    const V re = student_is_smaller ? t.re : s.re, im = student_is_smaller ? t.im : s.im;
    return {(s.re - t.re) * common + re * factor, (s.im - t.im) * common + im * factor};
  }

  static Bins read_bins(const E* source) {
    const V first = S::read(source), second = S::read(source + kLanes);
    Ints even, odd;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      even[lane] = 2 * lane;
      odd[lane] = 2 * lane + 1;
    }
    return {shuffled(first, second, even), shuffled(first, second, odd)};
  }

  static Bins read_some_bins(const E* source, int64_t count) {
    E padded[2 * kLanes] = {};
    std::memcpy(padded, source, 2 * count * sizeof(E));
    return read_bins(padded);
  }

  // Pairs of kLanes / 2 bins, from `first` on.
  static V interleaved(const Bins& bins, int64_t first) {
    Ints order;
    for (int64_t lane = 0; lane < kLanes; ++lane) order[lane] = first + lane / 2 + lane % 2 * kLanes;
    return shuffled(bins.re, bins.im, order);
  }

  static void write_some_bins(E* target, const Bins& bins, int64_t count) {
    E padded[2 * kLanes];
    S::write(padded, interleaved(bins, 0));
    S::write(padded + kLanes, interleaved(bins, kLanes / 2));
    std::memcpy(target, padded, 2 * count * sizeof(E));
  }

  static V shuffled(V first, V second, Ints order) {
#if defined(__clang__)  // has the like for constants only
    V result;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      result[lane] = order[lane] < kLanes ? first[order[lane]] : second[order[lane] - kLanes];
    }
    return result;
#else
    return __builtin_shuffle(first, second, order);
#endif
  }
};

static void spectral_forward(const SpectralArguments& arguments, Threads threads) {
  with_storage(arguments.dtype, [&](auto storage) { Spectral<decltype(storage)>::forward(arguments, threads); });
}

static void spectral_backward(const SpectralArguments& arguments, Threads threads) {
  with_storage(arguments.dtype, [&](auto storage) { Spectral<decltype(storage)>::backward(arguments, threads); });
}

}  // namespace abckd::cpu::ABCKD_ISA
