// Index arithmetic that every backend shares: padding and the windows of adaptive average pooling.
#pragma once
#include <cstdint>

#include "arguments.h"

#ifdef __CUDACC__
#define ABCKD_HOST_DEVICE __host__ __device__
#else
#define ABCKD_HOST_DEVICE
#endif

namespace abckd {

// Valid frames of a map with `frames` frames where `length` of `padded_length` count: a ceiling, within 0..frames.
ABCKD_HOST_DEVICE inline int64_t valid_frames(int64_t length, int64_t frames, int64_t padded_length) {
  if (length <= 0) return 0;
  if (length >= padded_length) return frames;  // before multiplying: length may be anything
  return (length * frames + padded_length - 1) / padded_length;
}

// The same of sample b; every frame where the batch is not padded.
ABCKD_HOST_DEVICE inline int64_t valid_frames(const Padding& padding, int64_t b, int64_t frames) {
  return padding.lengths == nullptr ? frames : valid_frames(padding.lengths[b], frames, padding.padded_length);
}

// Window of cell u when `size` positions are pooled to `cells`: [begin, end), never empty, may overlap its neighbours.
ABCKD_HOST_DEVICE inline int64_t window_begin(int64_t u, int64_t size, int64_t cells) { return u * size / cells; }
ABCKD_HOST_DEVICE inline int64_t window_end(int64_t u, int64_t size, int64_t cells) {
  return ((u + 1) * size + cells - 1) / cells;
}

}  // namespace abckd
