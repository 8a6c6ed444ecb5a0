// Warp operations. A lane waits until all lanes of its mask are at the same operation, with the same mask, in the same line.
#pragma once
#include <cstring>
#include <type_traits>

#include "runtime.h"

namespace simt {

// Moves the bits of a value of up to 8 bytes from lane `source`.
template <typename T>
inline __attribute__((always_inline)) T shuffle_value(const char* operation, unsigned mask, T value, int source,
                                                      Place place) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= 8, "shuffles move numbers of up to 8 bytes");
  std::uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  bits = shuffle(operation, mask, bits, source, place);
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace simt

// The lane that is read, per form; `width` lanes form a segment. Beyond its segment a lane reads itself, but an xor may
// reach into an earlier segment.
template <typename T>
inline __attribute__((always_inline)) T __shfl_sync(unsigned mask, T value, int source, int width = 32,
                                                    simt::Place place = simt::Place::here()) {
  return simt::shuffle_value("__shfl_sync", mask, value, (simt::lane() & ~(width - 1)) | (source & (width - 1)), place);
}
template <typename T>
inline __attribute__((always_inline)) T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                                                       simt::Place place = simt::Place::here()) {
  const int lane = simt::lane(), in_segment = lane & (width - 1);
  const int source = in_segment >= static_cast<int>(delta) ? lane - static_cast<int>(delta) : lane;
  return simt::shuffle_value("__shfl_up_sync", mask, value, source, place);
}
template <typename T>
inline __attribute__((always_inline)) T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                                                         simt::Place place = simt::Place::here()) {
  const int lane = simt::lane(), in_segment = lane & (width - 1);
  const int source = in_segment + static_cast<int>(delta) < width ? lane + static_cast<int>(delta) : lane;
  return simt::shuffle_value("__shfl_down_sync", mask, value, source, place);
}
template <typename T>
inline __attribute__((always_inline)) T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                                                        simt::Place place = simt::Place::here()) {
  const int lane = simt::lane(), other = lane ^ lanes, last_of_segment = lane | (width - 1);
  return simt::shuffle_value("__shfl_xor_sync", mask, value, other <= last_of_segment ? other & 31 : lane, place);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Place place = simt::Place::here()) {
  return simt::ballot("__ballot_sync", mask, predicate != 0, place);
}
inline int __any_sync(unsigned mask, int predicate, simt::Place place = simt::Place::here()) {
  return simt::ballot("__any_sync", mask, predicate != 0, place) != 0;
}
inline int __all_sync(unsigned mask, int predicate, simt::Place place = simt::Place::here()) {
  return simt::ballot("__all_sync", mask, predicate == 0, place) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, simt::Place place = simt::Place::here()) {
  simt::sync_warp(mask, place);
}
