// exp and log of a register: polynomials for float, within two units in the last place; the C library, lane by lane, for double.
namespace abckd::cpu::ABCKD_ISA {

typedef int32_t Ints __attribute__((vector_size(ABCKD_VECTOR_BYTES)));

// e^x for x <= 88; zero where that is less than the smallest normal number; NaN stays NaN. Coefficients: Cephes' expf.
inline Vec<float> exponential(Vec<float> x) {
  const float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the last bits
  const Vec<float> shifted = x * 1.44269504088896341f + kRound;
  const Vec<float> n = shifted - kRound;
  const Vec<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec<float> y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = (y * r * r + r) + 1.0f;
  // The integer lies in the low bits; what the addend put above them leaves with the shift.
  const Ints power = (((Ints)shifted) << 23) + 0x3f800000;
  return x < -87.3f ? Vec<float>{} : y * (Vec<float>)power;
}

inline Vec<double> exponential(Vec<double> x) {
  for (int64_t lane = 0; lane < Vector<double>::kLanes; ++lane) x[lane] = std::exp(x[lane]);
  return x;
}

// log x for normal x > 0; NaN stays NaN. Coefficients: Cephes' logf.
inline Vec<float> logarithm(Vec<float> x) {
  // x = 2^e m with m in [sqrt(1/2), sqrt(2)): the bits of sqrt(1/2) taken off, the exponent's bits are e's.
  const Ints bits = (Ints)x, exponent = (bits - 0x3f3504f3) >> 23;
  const Vec<float> e = __builtin_convertvector(exponent, Vec<float>);
  const Vec<float> m = (Vec<float>)(Ints)(bits - exponent * 0x800000) - 1.0f, z = m * m;
  Vec<float> y = m * 7.0376836292e-2f - 1.1514610310e-1f;
  y = y * m + 1.1676998740e-1f;
  y = y * m - 1.2420140846e-1f;
  y = y * m + 1.4249322787e-1f;
  y = y * m - 1.6668057665e-1f;
  y = y * m + 2.0000714765e-1f;
  y = y * m - 2.4999993993e-1f;
  y = y * m + 3.3333331174e-1f;
  y = y * m * z - e * 2.12194440e-4f - 0.5f * z;
  return x == x ? (m + y) + e * 0.693359375f : x;
}

inline Vec<double> logarithm(Vec<double> x) {
  for (int64_t lane = 0; lane < Vector<double>::kLanes; ++lane) x[lane] = std::log(x[lane]);
  return x;
}

}  // namespace abckd::cpu::ABCKD_ISA
