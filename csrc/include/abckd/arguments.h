// What the launchers of every device take: pointers, sizes and options, described here once. Nothing here knows torch.
#pragma once
#include <cstdint>

namespace abckd {

enum class Dtype { f32, f64, bf16, f16 };

inline int64_t element_bytes(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }
// Of the maps and means of a feature.
inline int64_t sum_bytes(Dtype dtype) { return dtype == Dtype::f64 ? 8 : 4; }

// Frames of a padded batch (see windows.h); lengths may be null: every frame is valid.
struct Padding {
  const int64_t* lengths;
  int64_t padded_length;
};

// A feature x[b, c, p] with p = (frame, band), and what tap forward writes for it.
struct TapLayer {
  const void* x;
  bool channels_last;  // x lies as [b, p, c] instead of [b, c, p]
  int64_t channels, frames, bands;
  void* map;   // [b, p], float (double for f64)
  void* mean;  // [b, c], likewise; null: not wanted
};

struct TapBackwardLayer {
  TapLayer layer;    // map and mean are the gradients that arrive for them; each may be null
  const void* grad;  // gradient that arrives for x, laid out as x; may be null
  void* result;      // gradient of x, laid out as x
};

struct TapArguments {
  Dtype dtype;  // of every feature of the call
  int power;    // 1 or 2
  int64_t batch;
  Padding padding;
  void* workspace;  // as many bytes as the device's launcher asks for; null where it asks for none
};

// Student and teacher maps together that compress takes on CUDA: what fits into 4 KB of kernel parameters
// and 48 KB of shared memory.
constexpr int64_t kMostMaps = 90;

// A map [b, frame, band] of one layer.
struct Map {
  const void* data;
  int64_t frames, bands;
};

struct MapGrad {
  void* data;
  int64_t frames, bands;
};

struct CompressArguments {
  bool is_double;
  int64_t batch, students, teachers;
  const Map* student_maps;
  const Map* teacher_maps;
  const void* scores;  // [b, i, j]; null: similarity / temperature
  const bool* mask;    // [i, j]; null: everything allowed
  int64_t grid_frames, grid_bands;
  bool per_frame;
  double temperature;
  Padding padding;
  void* distances;        // [b, i]
  void* attention;        // [b, i, j]
  void* attention_grads;  // [b, i, j], d distance_i / d attention_ij; null: no gradients wanted
  void* map_grads;        // [b, i, frame, band] on the grid, d distance_i / d pooled map
  void* workspace;        // as in TapArguments
};

struct CompressBackwardArguments {
  bool is_double;
  int64_t batch, students;
  const void* distance_grads;  // [b, i]
  const void* map_grads;       // [b, i, frame, band] on the grid
  int64_t grid_frames, grid_bands;
  Padding padding;
  const MapGrad* results;  // the gradient of each student map
};

// Groups of rows x[g, r, k], k = (o, i): at g * group_stride + r * row_stride + o * outer_stride + i elements from x, o < outer and
// i < inner. shifted: all rows of a group but the first have the first subtracted.
struct GramArguments {
  Dtype dtype;
  const void* x;
  int64_t groups, rows, outer, inner;
  int64_t group_stride, row_stride, outer_stride;
  bool shifted;
  double* grams;  // [g, r, r]; backward does not use it
};

struct GramBackwardArguments {
  GramArguments gram;
  const double* gram_grads;  // [g, r, r]
  void* result;              // the gradient of x, laid out as x
};

// Products of rows x[r, k] and y[r, k], contiguous: x.x, y.y, x.y, x.e, e.e with e = y - x.
constexpr int kDots = 5;

struct DotsArguments {
  Dtype dtype;
  const void* x;
  const void* y;
  int64_t rows, columns;
  double* dots;  // [r, kDots]; backward does not use it
};

struct DotsBackwardArguments {
  DotsArguments dots;
  const double* factors;  // [r, 2]: of x and of e
  void* result;           // [r, k]: factors[r, 0] x + factors[r, 1] e
};

}  // namespace abckd
