// One register of accumulators, and how each storage type becomes one. GCC's and Clang's vector extension does the
// arithmetic; intrinsics appear only where it has no word for the instruction (half precision, streaming stores).
namespace abckd::cpu::ABCKD_ISA {

template <typename A, int64_t kBytes = ABCKD_VECTOR_BYTES>  // A: float or double
struct Vector {
  static constexpr int64_t kLanes = kBytes / sizeof(A);
  using Bits = std::conditional_t<sizeof(A) == 4, uint32_t, uint64_t>;
  typedef A Type __attribute__((vector_size(kBytes)));
  typedef Bits BitsType __attribute__((vector_size(kBytes)));
};
template <typename A>
using Vec = typename Vector<A>::Type;

template <typename A>
inline Vec<A> load(const A* source) {
  Vec<A> value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

template <typename A>
inline void store(A* target, Vec<A> value) {
  std::memcpy(target, &value, sizeof(value));
}

// By halves: lane after lane would wait for each addition.
template <typename A, int64_t kBytes = ABCKD_VECTOR_BYTES>
inline A sum(typename Vector<A, kBytes>::Type value) {
  if constexpr (kBytes > 16) {
    typename Vector<A, kBytes / 2>::Type halves[2];
    std::memcpy(halves, &value, kBytes);
    return sum<A, kBytes / 2>(halves[0] + halves[1]);
  } else {
    A total = 0;
    for (int64_t lane = 0; lane < Vector<A, kBytes>::kLanes; ++lane) total += value[lane];
    return total;
  }
}

template <typename A>
inline Vec<A> magnitude(Vec<A> value) {
  using Bits = typename Vector<A>::BitsType;
  const Bits all_but_sign = ~Bits{} >> 1;
  return (Vec<A>)((Bits)value & all_but_sign);
}

// -1, 0 or 1.
template <typename A>
inline Vec<A> sign(Vec<A> value) {
  const Vec<A> zero{}, one = zero + 1;
  return value > zero ? one : (value < zero ? -one : zero);
}

// Storage<D>: the element type in memory, the accumulator type, and vectors of elements to and from vectors of accumulators.
template <Dtype D>
struct Storage;

template <typename T>
struct PlainStorage {
  using Element = T;
  using Accumulator = T;
  static Vec<T> read(const T* source) { return load(source); }
  static void write(T* target, Vec<T> value) { store(target, value); }
};
template <>
struct Storage<Dtype::f32> : PlainStorage<float> {};
template <>
struct Storage<Dtype::f64> : PlainStorage<double> {};

struct HalfStorage {
  using Element = uint16_t;
  using Accumulator = float;
  static constexpr int64_t kLanes = Vector<float>::kLanes;
  typedef uint16_t Halves __attribute__((vector_size(ABCKD_VECTOR_BYTES / 2)));
  typedef uint32_t Words __attribute__((vector_size(ABCKD_VECTOR_BYTES)));
};

template <>
struct Storage<Dtype::bf16> : HalfStorage {
  static Vec<float> read(const uint16_t* source) {
    Halves halves;
    std::memcpy(&halves, source, sizeof(halves));
    return (Vec<float>)(__builtin_convertvector(halves, Words) << 16);
  }
  // Round to nearest, ties to even; NaN stays NaN.
  static void write(uint16_t* target, Vec<float> value) {
    const Words bits = (Words)value;
    const Words rounded = (bits + (0x7fffu + ((bits >> 16) & 1u))) >> 16;
    const Words quiet_nan = Words{} + 0x7fc0u;
    const Halves halves = __builtin_convertvector((Words)(value == value ? rounded : quiet_nan), Halves);
    std::memcpy(target, &halves, sizeof(halves));
  }
};

template <>
struct Storage<Dtype::f16> : HalfStorage {
#if ABCKD_VECTOR_BYTES == 64
  static Vec<float> read(const uint16_t* source) {
    return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
  }
  static void write(uint16_t* target, Vec<float> value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
  }
#elif ABCKD_VECTOR_BYTES == 32
  static Vec<float> read(const uint16_t* source) {
    return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
  }
  static void write(uint16_t* target, Vec<float> value) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
  }
#else
  static Vec<float> read(const uint16_t* source) {
    Vec<float> value;
    for (int64_t lane = 0; lane < kLanes; ++lane) value[lane] = widen(source[lane]);
    return value;
  }
  static void write(uint16_t* target, Vec<float> value) {
    for (int64_t lane = 0; lane < kLanes; ++lane) target[lane] = narrow(value[lane]);
  }

 private:
  static float widen(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 0) return std::copysign(std::ldexp(float(fraction), -24), half & 0x8000u ? -1.0f : 1.0f);
    const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  // Round to nearest, ties to even: by the float adder, at the weight of half's last bit.
  static uint16_t narrow(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return sign | 0x7e00u;
    if (bits >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and above round to infinity
    if (bits < 0x38800000u) {                        // below 2^-14: a multiple of 2^-24
      float shifted;
      std::memcpy(&shifted, &bits, sizeof(shifted));
      shifted += 0.5f;  // the last bit of 0.5f weighs 2^-24
      std::memcpy(&bits, &shifted, sizeof(bits));
      return sign | uint16_t(bits - 0x3f000000u);
    }
    bits += 0xfffu + (bits >> 13 & 1u);
    return sign | uint16_t((bits - 0x38000000u) >> 13);
  }
#endif
};

constexpr int64_t kCacheLine = 64;                // bytes
constexpr int64_t kStreamBytes = int64_t{4} << 20;  // results larger than this are worth stream()

// Writes past the caches: a gradient larger than they are would be read from memory first, only to be overwritten.
// target must be aligned to the vector's size in memory. Ends with fence() on each thread that streamed.
template <typename S>
inline void stream(typename S::Element* target, Vec<typename S::Accumulator> value) {
#if defined(ABCKD_X86)
  constexpr int64_t kBytes = Vector<typename S::Accumulator>::kLanes * sizeof(typename S::Element);
  alignas(64) typename S::Element packed[Vector<typename S::Accumulator>::kLanes];
  S::write(packed, value);
#if ABCKD_VECTOR_BYTES == 64
  if constexpr (kBytes == 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target), _mm512_load_si512(packed));
    return;
  }
#endif
#if ABCKD_VECTOR_BYTES >= 32
  if constexpr (kBytes == 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target), _mm256_load_si256(reinterpret_cast<const __m256i*>(packed)));
    return;
  }
#endif
  if constexpr (kBytes == 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(target), _mm_load_si128(reinterpret_cast<const __m128i*>(packed)));
    return;
  }
#endif
  S::write(target, value);
}

inline void fence() {
#if defined(ABCKD_X86)
  _mm_sfence();
#endif
}

// The same for the first `count` lanes; the others read as zero and are not written.
template <typename S>
inline Vec<typename S::Accumulator> read_some(const typename S::Element* source, int64_t count) {
  typename S::Element padded[Vector<typename S::Accumulator>::kLanes] = {};
  std::memcpy(padded, source, count * sizeof(*source));
  return S::read(padded);
}

template <typename S>
inline void write_some(typename S::Element* target, Vec<typename S::Accumulator> value, int64_t count) {
  typename S::Element padded[Vector<typename S::Accumulator>::kLanes];
  S::write(padded, value);
  std::memcpy(target, padded, count * sizeof(*target));
}

}  // namespace abckd::cpu::ABCKD_ISA
