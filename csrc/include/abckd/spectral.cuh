// spectral on a GPU: errors of compressed spectra, and their derivative.
//
// A sample is `bins` pairs (re, im) that lie one after the other, in either memory order. A block owns kSpectralSteps * kThreads
// times 16 bytes of it, which threads read 16 bytes at a time, so that blocks begin at multiples of 16 bytes from the tensor's
// first bin wherever samples begin; the few pairs at a sample's ends that share 16 bytes with another sample are read one by one,
// as all are where a tensor is not aligned. Forward reads both spectra once and writes two sums per block, which
// spectral_mean_kernel adds in a fixed order; backward reads both once and writes the gradient once.
// Sums are float (double for double).
#pragma once
#include <type_traits>

#include "arguments.h"
#include "elements.cuh"
#include "launch.cuh"
#include "warp.cuh"
#include "windows.h"

namespace abckd::cuda {

constexpr int kSpectralWarps = 4;  // per block
constexpr int kSpectralThreads = kSpectralWarps * kWarp;
constexpr int kSpectralBlocks = 4;  // per multiprocessor, at least
constexpr int kSpectralSteps = 4;   // 16 bytes of each spectrum that a thread has in flight

template <typename E>
constexpr int kSpectralPairs = 16 / (2 * sizeof(E));  // in 16 bytes
template <typename E>
constexpr int kSpectralBins = kSpectralSteps * kSpectralThreads * kSpectralPairs<E>;  // of a block

struct SpectralTable {
  const void* student;
  const void* teacher;
  const void* magnitude_grads;  // [b], backward's
  const void* complex_grads;
  void* partial;    // [b, block, 2]: sums of magnitude and complex errors, forward's
  void* magnitude;  // [b], forward's
  void* complex;
  void* result;  // backward's
  int64_t bins, frames, inner, blocks;  // of a sample
  double exponent, eps;
  Padding padding;
  bool vector;  // tensors are aligned to 16 bytes

  // Bins that count, of each run of frames * inner.
  __device__ int64_t valid_in_run(int64_t b) const {
    return valid_frames(padding, b, frames) * inner;
  }

  // Bins that the means of sample b are over, at least one.
  __device__ int64_t valid_bins(int64_t b) const {
    const int64_t valid = bins / (frames * inner) * valid_in_run(b);
    return valid > 0 ? valid : 1;
  }
};

inline __device__ float power_of_two(float x) { return exp2f(x); }
inline __device__ double power_of_two(double x) { return exp2(x); }
inline __device__ float binary_logarithm(float x) { return log2f(x); }
inline __device__ double binary_logarithm(double x) { return log2(x); }

// A gradient in its type; half precision would turn what is too large into infinity. NaN stays NaN.
template <typename E>
__device__ E narrow_in_range(Accumulator<E> gradient) {
  if constexpr (std::is_same_v<E, __half>) {
    if (gradient > 65504.0f) gradient = 65504.0f;
    if (gradient < -65504.0f) gradient = -65504.0f;
  }
  return Element<E>::narrow(gradient);
}

template <typename A>
struct CompressedBin {
  A power, magnitude, factor;  // m^2, m^c, m^(c-1)

  __device__ CompressedBin(A re, A im, const SpectralTable& table) : power(re * re + im * im + A(table.eps)) {
    const A logarithm = binary_logarithm(power);
    magnitude = power_of_two(logarithm * A(table.exponent / 2));
    factor = power_of_two(logarithm * A((table.exponent - 1) / 2));
  }
};

// s m_s^(c-1) - t m_t^(c-1) of re or im, as (s - t) times the smaller factor and the rest: near s = t no digits are lost, and at
// s = t it is zero even if products are fused with sums.
template <typename A>
__device__ A difference(A s, const CompressedBin<A>& from, A t, const CompressedBin<A>& to) {
  const bool student_is_smaller = from.factor < to.factor;
  return (s - t) * (student_is_smaller ? from.factor : to.factor) + (student_is_smaller ? t : s) * (from.factor - to.factor);
}

// The bins of a block that belong to one thread: `step` counts its 16 bytes, `pair` the bins in them.
template <typename E, bool kVector>
struct SpectralTile {
  static constexpr int kPairs = kSpectralPairs<E>;
  struct Elements {
    E values[2 * kPairs];
  };

  int64_t b, begin;         // sample; the block's first bin, counted from the tensor's
  int existing, behind;     // bins [existing, behind) of the block belong to the sample
  int64_t run, valid;       // bins of a run, and how many of them count
  int64_t first_in_run;     // of the block's first bin; may be negative, where a sample's first run begins in the block

  __device__ explicit SpectralTile(const SpectralTable& table) {
    constexpr int kBins = kSpectralBins<E>;
    const int64_t block = blockIdx.x % table.blocks;
    b = blockIdx.x / table.blocks;
    const int64_t sample = b * table.bins, from_sample = block * kBins - sample % kPairs;
    begin = sample + from_sample;
    existing = from_sample < 0 ? static_cast<int>(-from_sample) : 0;
    const int64_t left = table.bins - from_sample;
    behind = left < kBins ? static_cast<int>(left) : kBins;
    run = table.frames * table.inner;
    valid = table.valid_in_run(b);
    first_in_run = from_sample < 0 ? from_sample : from_sample % run;
  }

  // In the block. Without kVector, lanes touch neighbours.
  __device__ int at(int step, int pair) const {
    const int thread = static_cast<int>(threadIdx.x);
    return kVector ? (step * kSpectralThreads + thread) * kPairs + pair : (step * kPairs + pair) * kSpectralThreads + thread;
  }

  __device__ bool exists(int bin) const { return bin >= existing && bin < behind; }

  __device__ bool counts(int bin) const {
    if (!exists(bin) || valid == run) return exists(bin);
    int64_t in_run = first_in_run + bin;
    if (in_run >= run) {
      constexpr int kBins = kSpectralBins<E>;
      in_run = run >= kBins ? in_run - run : static_cast<unsigned>(in_run) % static_cast<unsigned>(run);
    }
    return in_run < valid;
  }

  // Which of the step's bins count, as bits.
  __device__ unsigned counting(int step) const {
    unsigned bits = 0;
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) bits |= static_cast<unsigned>(counts(at(step, pair))) << pair;
    return bits;
  }

  // All 16 bytes are the sample's.
  __device__ bool is_whole(int step) const { return kVector && exists(at(step, 0)) && exists(at(step, kPairs - 1)); }

  // The step's bins that count; others may be anything.
  __device__ Elements read(const void* spectrum, int step, unsigned bits) const {
    const E* pairs = static_cast<const E*>(spectrum) + 2 * begin;
    Elements own{};
    if (is_whole(step)) {
      if (bits != 0) {
        const uint4 loaded = __ldg(reinterpret_cast<const uint4*>(pairs + 2 * at(step, 0)));
        memcpy(&own, &loaded, sizeof(own));
      }
      return own;
    }
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if (bits >> pair & 1) {
        own.values[2 * pair] = __ldg(pairs + 2 * at(step, pair));
        own.values[2 * pair + 1] = __ldg(pairs + 2 * at(step, pair) + 1);
      }
    }
    return own;
  }

  // The step's bins that exist.
  __device__ void write(void* spectrum, int step, const Elements& own) const {
    E* pairs = static_cast<E*>(spectrum) + 2 * begin;
    if (is_whole(step)) {
      uint4 stored;
      memcpy(&stored, &own, sizeof(own));
      __stcg(reinterpret_cast<uint4*>(pairs + 2 * at(step, 0)), stored);
      return;
    }
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if (exists(at(step, pair))) {
        __stcg(pairs + 2 * at(step, pair), own.values[2 * pair]);
        __stcg(pairs + 2 * at(step, pair) + 1, own.values[2 * pair + 1]);
      }
    }
  }
};

// Sum over the block, in thread 0. `by_warp` has room for a value of each warp.
template <typename A>
__device__ A sum_over_block(A value, A* by_warp) {
  value = sum_over_lanes(value);
  if (lane_index() == 0) by_warp[warp_index()] = value;
  __syncthreads();
  A total = 0;
#pragma unroll
  for (int warp = 0; warp < kSpectralWarps; ++warp) total += by_warp[warp];
  return total;
}

template <typename E, bool kVector>
__device__ void spectral_forward(const SpectralTable& table) {
  using A = Accumulator<E>;
  using Tile = SpectralTile<E, kVector>;
  const Tile tile(table);
  unsigned bits[kSpectralSteps];
  typename Tile::Elements students[kSpectralSteps], teachers[kSpectralSteps];
#pragma unroll
  for (int step = 0; step < kSpectralSteps; ++step) {
    bits[step] = tile.counting(step);
    students[step] = tile.read(table.student, step, bits[step]);
    teachers[step] = tile.read(table.teacher, step, bits[step]);
  }
  A magnitudes = 0, pairs = 0;
#pragma unroll
  for (int step = 0; step < kSpectralSteps; ++step) {
#pragma unroll
    for (int pair = 0; pair < Tile::kPairs; ++pair) {
      const A re = Element<E>::widen(students[step].values[2 * pair]), im = Element<E>::widen(students[step].values[2 * pair + 1]);
      const A to_re = Element<E>::widen(teachers[step].values[2 * pair]);
      const A to_im = Element<E>::widen(teachers[step].values[2 * pair + 1]);
      const CompressedBin<A> from(re, im, table), to(to_re, to_im, table);
      const A error = from.magnitude - to.magnitude;
      const A error_re = difference(re, from, to_re, to), error_im = difference(im, from, to_im, to);
      if (bits[step] >> pair & 1) {
        magnitudes += error * error;
        pairs += error_re * error_re + error_im * error_im;
      }
    }
  }
  ABCKD_SHARED(A, by_warp, 2 * kSpectralWarps);
  const A magnitude = sum_over_block(magnitudes, by_warp), complex = sum_over_block(pairs, by_warp + kSpectralWarps);
  if (threadIdx.x == 0) {
    A* partial = static_cast<A*>(table.partial) + 2 * int64_t{blockIdx.x};
    partial[0] = magnitude;
    partial[1] = complex;
  }
}

template <typename E>
__global__ void __launch_bounds__(kSpectralThreads, kSpectralBlocks)
    spectral_forward_kernel(const __grid_constant__ SpectralTable table) {
  table.vector ? spectral_forward<E, true>(table) : spectral_forward<E, false>(table);
}

// The means of a sample from its blocks' sums, by one block.
template <typename A>
__global__ void __launch_bounds__(kSpectralThreads) spectral_mean_kernel(const __grid_constant__ SpectralTable table) {
  const int64_t b = blockIdx.x;
  const A* partial = static_cast<const A*>(table.partial) + 2 * b * table.blocks;
  A magnitude = 0, complex = 0;
#pragma unroll 4
  for (int64_t block = threadIdx.x; block < table.blocks; block += kSpectralThreads) {
    magnitude += __ldg(partial + 2 * block);
    complex += __ldg(partial + 2 * block + 1);
  }
  ABCKD_SHARED(A, by_warp, 2 * kSpectralWarps);
  magnitude = sum_over_block(magnitude, by_warp);
  complex = sum_over_block(complex, by_warp + kSpectralWarps);
  if (threadIdx.x != 0) return;
  const A valid = A(table.valid_bins(b));
  static_cast<A*>(table.magnitude)[b] = magnitude / valid;
  static_cast<A*>(table.complex)[b] = complex / valid;
}

template <typename E, bool kVector>
__device__ void spectral_backward(const SpectralTable& table) {
  using A = Accumulator<E>;
  using Tile = SpectralTile<E, kVector>;
  const Tile tile(table);
  const A share = A(2) / A(table.valid_bins(tile.b));
  const A by_magnitude = __ldg(static_cast<const A*>(table.magnitude_grads) + tile.b) * share * A(table.exponent);
  const A by_pair = __ldg(static_cast<const A*>(table.complex_grads) + tile.b) * share;
  const A by_along = by_pair * A(table.exponent - 1);
  unsigned bits[kSpectralSteps];
  typename Tile::Elements students[kSpectralSteps], teachers[kSpectralSteps];
#pragma unroll
  for (int step = 0; step < kSpectralSteps; ++step) {
    bits[step] = tile.counting(step);
    students[step] = tile.read(table.student, step, bits[step]);
    teachers[step] = tile.read(table.teacher, step, bits[step]);
  }
#pragma unroll
  for (int step = 0; step < kSpectralSteps; ++step) {
#pragma unroll
    for (int pair = 0; pair < Tile::kPairs; ++pair) {
      E& own_re = students[step].values[2 * pair];
      E& own_im = students[step].values[2 * pair + 1];
      const A re = Element<E>::widen(own_re), im = Element<E>::widen(own_im);
      const A to_re = Element<E>::widen(teachers[step].values[2 * pair]);
      const A to_im = Element<E>::widen(teachers[step].values[2 * pair + 1]);
      const CompressedBin<A> from(re, im, table), to(to_re, to_im, table);
      const A error_re = difference(re, from, to_re, to), error_im = difference(im, from, to_im, to);
      const A of_magnitudes = by_magnitude * (from.magnitude - to.magnitude) * from.magnitude;
      const A along = (of_magnitudes + by_along * from.factor * (re * error_re + im * error_im)) / from.power;
      const A of_pairs = by_pair * from.factor;
      const bool counts = bits[step] >> pair & 1;
      own_re = narrow_in_range<E>(counts ? along * re + of_pairs * error_re : A(0));
      own_im = narrow_in_range<E>(counts ? along * im + of_pairs * error_im : A(0));
    }
    tile.write(table.result, step, students[step]);
  }
}

template <typename E>
__global__ void __launch_bounds__(kSpectralThreads, kSpectralBlocks)
    spectral_backward_kernel(const __grid_constant__ SpectralTable table) {
  table.vector ? spectral_backward<E, true>(table) : spectral_backward<E, false>(table);
}

}  // namespace abckd::cuda
