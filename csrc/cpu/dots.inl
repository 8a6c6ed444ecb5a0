// dots on a CPU. A task owns one channel of one sample; memory carries x and y once, and backward the result once more.
// Everything is double from the first product on, which for halves and floats makes products exact.
namespace abckd::cpu::ABCKD_ISA {

template <typename S>  // Storage
struct Dots {
  using E = typename S::Element;
  using A = typename S::Accumulator;
  using V = Vec<A>;
  using W = Vec<double>;
  static constexpr int64_t kLanes = Vector<A>::kLanes;
  static constexpr int kParts = sizeof(double) / sizeof(A);

  static void forward(const DotsArguments& a, Threads threads) {
    if (a.rows * a.columns < kSerialElements) threads.count = 1;
    for_each_task(threads, a.rows, [&](int64_t row) {
      W sums[kDotProducts][kParts] = {};
      for_each_vector(a, row, [&](int64_t, int64_t, const W* x, const W* y) {
        for (int part = 0; part < kParts; ++part) {
          const W e = y[part] - x[part];
          sums[0][part] += x[part] * x[part];
          sums[1][part] += y[part] * y[part];
          sums[2][part] += x[part] * y[part];
          sums[3][part] += x[part] * e;
          sums[4][part] += e * e;
          sums[5][part] += x[part];
          sums[6][part] += e;
        }
      });
      for (int i = 0; i < kDotProducts; ++i) {
        double total = 0;
        for (int part = 0; part < kParts; ++part) total += sum<double>(sums[i][part]);
        a.dots[row * kDotProducts + i] = total;
      }
    });
  }

  static void backward(const DotsBackwardArguments& b, Threads threads) {
    const DotsArguments& a = b.dots;
    if (a.rows * a.columns < kSerialElements) threads.count = 1;
    // A row whose start is not aligned is written through the caches.
    const bool streaming = a.rows * a.columns * int64_t(sizeof(E)) > kStreamBytes;
    for_each_task(threads, a.rows, [&](int64_t row) {
      E* result = static_cast<E*>(b.result) + row * a.columns;
      const bool aligned = reinterpret_cast<uintptr_t>(result) % (kLanes * sizeof(E)) == 0;
      streaming && aligned ? combine<true>(b, row, result) : combine<false>(b, row, result);
      if (streaming) fence();
    });
  }

 private:
  template <bool kStream>
  static void combine(const DotsBackwardArguments& b, int64_t row, E* result) {
    const double of_x = b.factors[3 * row], of_e = b.factors[3 * row + 1], constant = b.factors[3 * row + 2];
    for_each_vector(b.dots, row, [&](int64_t k, int64_t count, const W* x, const W* y) {
      W fresh[kParts];
      for (int part = 0; part < kParts; ++part) fresh[part] = x[part] * of_x + (y[part] - x[part]) * of_e + constant;
      if (count < kLanes) {
        write_some<S>(result + k, narrow(fresh), count);
      } else {
        kStream ? stream<S>(result + k, narrow(fresh)) : S::write(result + k, narrow(fresh));
      }
    });
  }

  template <typename Visit>  // visit(first column, how many, x, y); beyond how many there are zeros
  static void for_each_vector(const DotsArguments& a, int64_t row, const Visit& visit) {
    const E* x = static_cast<const E*>(a.x) + row * a.columns;
    const E* y = static_cast<const E*>(a.y) + row * a.columns;
    W wide_x[kParts], wide_y[kParts];
    int64_t k = 0;
    for (; k + kLanes <= a.columns; k += kLanes) {
      widen(S::read(x + k), wide_x);
      widen(S::read(y + k), wide_y);
      visit(k, kLanes, wide_x, wide_y);
    }
    if (k < a.columns) {
      widen(read_some<S>(x + k, a.columns - k), wide_x);
      widen(read_some<S>(y + k, a.columns - k), wide_y);
      visit(k, a.columns - k, wide_x, wide_y);
    }
  }

  using Part = typename Vector<A, ABCKD_VECTOR_BYTES / kParts>::Type;

  static void widen(V value, W* parts) {
    Part narrow_parts[kParts];
    std::memcpy(narrow_parts, &value, sizeof(value));
    for (int part = 0; part < kParts; ++part) parts[part] = __builtin_convertvector(narrow_parts[part], W);
  }

  static V narrow(const W* parts) {
    Part narrow_parts[kParts];
    for (int part = 0; part < kParts; ++part) narrow_parts[part] = __builtin_convertvector(parts[part], Part);
    V value;
    std::memcpy(&value, narrow_parts, sizeof(value));
    return value;
  }
};

static void dots_forward(const DotsArguments& arguments, Threads threads) {
  with_storage(arguments.dtype, [&](auto storage) { Dots<decltype(storage)>::forward(arguments, threads); });
}

static void dots_backward(const DotsBackwardArguments& arguments, Threads threads) {
  with_storage(arguments.dots.dtype, [&](auto storage) { Dots<decltype(storage)>::backward(arguments, threads); });
}

}  // namespace abckd::cpu::ABCKD_ISA
