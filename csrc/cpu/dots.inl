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
    const bool streaming = a.rows * a.columns * int64_t(sizeof(E)) > kStreamBytes;
    for_each_task(threads, a.rows, [&](int64_t row) {
      const double* g = b.grads + row * kDotProducts;
      const double xx = g[0], yy = g[1], xy = g[2], xe = g[3], ee = g[4], sum_x = g[5], sum_e = g[6];
      const Combination of_x{2 * xx + xy - xe, xy + xe - 2 * ee, sum_x - sum_e, at(b.x_grad, a, row)};
      const Combination of_y{2 * yy + xy + xe, 2 * yy + 2 * ee, sum_e, at(b.y_grad, a, row)};
      streaming && of_x.aligned() && of_y.aligned() ? combine<true>(a, row, of_x, of_y) : combine<false>(a, row, of_x, of_y);
      if (streaming) fence();
    });
  }

 private:
  // x x_factor + e e_factor + constant, to a row of a gradient, or nowhere.
  struct Combination {
    double x_factor, e_factor, constant;
    E* result;

    // A row whose start is not aligned is written through the caches.
    bool aligned() const { return reinterpret_cast<uintptr_t>(result) % (kLanes * sizeof(E)) == 0; }
  };

  static E* at(void* grad, const DotsArguments& a, int64_t row) {
    return grad == nullptr ? nullptr : static_cast<E*>(grad) + row * a.columns;
  }

  template <bool kStream>
  static void combine(const DotsArguments& a, int64_t row, const Combination& of_x, const Combination& of_y) {
    for_each_vector(a, row, [&](int64_t k, int64_t count, const W* x, const W* y) {
      for (const Combination* of : {&of_x, &of_y}) {
        if (of->result == nullptr) continue;
        W fresh[kParts];
        for (int part = 0; part < kParts; ++part) {
          fresh[part] = x[part] * of->x_factor + (y[part] - x[part]) * of->e_factor + of->constant;
        }
        if (count < kLanes) {
          write_some<S>(of->result + k, narrow(fresh), count);
        } else {
          kStream ? stream<S>(of->result + k, narrow(fresh)) : S::write(of->result + k, narrow(fresh));
        }
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
