// Powers of vectors of positive numbers, to a few units in the last place: x^k = 2^(k log2 x), with the logarithm kept in two
// parts, the binary exponent and the rest, because in one number its rounding error would grow with the exponent.
namespace abckd::cpu::ABCKD_ISA {

template <typename A>
struct Binary;  // how A is made of bits, and how many terms its series need

template <>
struct Binary<float> {
  using Int = int32_t;
  static constexpr int kMantissa = 23;
  static constexpr Int kRootOfHalf = 0x3f3504f3;
  static constexpr float kRound = 0x1.8p23f;  // added and subtracted: leaves the nearest integer
  static constexpr int kDropped = 12;         // bits of a factor's low part: the rest times an exponent is exact
  static constexpr int kLogTerms = 5, kPowerTerms = 8;
};
template <>
struct Binary<double> {
  using Int = int64_t;
  static constexpr int kMantissa = 52;
  static constexpr Int kRootOfHalf = 0x3fe6a09e667f3bcd;
  static constexpr double kRound = 0x1.8p52;
  static constexpr int kDropped = 16;
  static constexpr int kLogTerms = 11, kPowerTerms = 15;
};

// log2 x = exponent + rest, |rest| <= 1/2.
template <typename A>
struct Logarithm {
  using B = Binary<A>;
  typedef typename B::Int Ints __attribute__((vector_size(ABCKD_VECTOR_BYTES)));
  Vec<A> exponent, rest;

  // x: positive and normal. What is not finite gives some finite logarithm.
  explicit Logarithm(Vec<A> x) {
    const Ints exponents = ((Ints)x - B::kRootOfHalf) >> B::kMantissa;
    const Vec<A> mantissa = (Vec<A>)((Ints)x - (exponents << B::kMantissa));  // sqrt(1/2) .. sqrt(2)
    exponent = __builtin_convertvector(exponents, Vec<A>);
    // log m = 2 artanh((m - 1) / (m + 1)) = 2 (r + r^3/3 + r^5/5 + ...), |r| < 0.172
    const Vec<A> r = (mantissa - 1) / (mantissa + 1), square = r * r;
    Vec<A> series = Vec<A>{} + A(1) / A(2 * B::kLogTerms - 1);
    for (int term = B::kLogTerms - 2; term >= 0; --term) series = series * square + A(1) / A(2 * term + 1);
    rest = series * r * A(2.885390081777926815);  // 2 / ln 2
  }
};

// k in x^k, |k| <= 1.
template <typename A>
struct Power {
  using B = Binary<A>;
  A all, high, low;  // all = high + low, nearly; high has few bits
  A factors[B::kPowerTerms];  // 2^t = sum factors[i] t^i

  explicit Power(double k) : all(A(k)) {
    typename B::Int bits;
    high = all;
    std::memcpy(&bits, &high, sizeof(bits));
    bits = bits >> B::kDropped << B::kDropped;
    std::memcpy(&high, &bits, sizeof(bits));
    low = A(k - double(high));
    double factor = 1;
    for (int term = 0; term < B::kPowerTerms; ++term) {
      factors[term] = A(factor);
      factor *= 0.693147180559945309 / (term + 1);
    }
  }

  Vec<A> of(const Logarithm<A>& x) const {
    using Ints = typename Logarithm<A>::Ints;
    const Vec<A> large = x.exponent * high, small = x.exponent * low + x.rest * all;
    const Vec<A> shifted = large + small + B::kRound, t = (large - (shifted - B::kRound)) + small;  // |t| <= 1/2
    Vec<A> sum = Vec<A>{} + factors[B::kPowerTerms - 1];
    for (int term = B::kPowerTerms - 2; term >= 0; --term) sum = sum * t + factors[term];
    return (Vec<A>)((Ints)sum + ((Ints)shifted << B::kMantissa));  // times 2^integer, which `shifted` holds in its last bits
  }
};

}  // namespace abckd::cpu::ABCKD_ISA
