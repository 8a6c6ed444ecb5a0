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

// ------------------------------------------------------------------------------------------------ tap

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

template <typename Layer>  // TapLayer forward, TapBackwardLayer backward
struct TapArguments {
  Dtype dtype;  // of every feature of the call
  int power;    // 1 or 2
  int64_t batch;
  Padding padding;
  const Layer* layers;
  int64_t count;    // of layers
  void* workspace;  // of the size that the device's <kernel>_workspace says; backward has none
};

// ------------------------------------------------------------------------------------------------ compress

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

// ------------------------------------------------------------------------------------------------ pointwise

// Which function of student and teacher: see abckd_kernels/ops/pointwise.
enum class PointwiseKind { squared, power, rectified, boundary, margin, heteroscedastic };

struct PointwiseArguments {
  Dtype dtype;  // of student, teacher and third, which lie alike
  PointwiseKind kind;
  double parameter;
  int64_t batch;
  bool channels_last;  // they lie as [b, p, c] instead of [b, c, p]
  int64_t channels, frames, bands;
  const void* student;
  const void* teacher;
  const void* third;        // null where the kind has none
  const void* per_channel;  // [c], float (double for f64); null where the kind has none
  Padding padding;
  void* sums;  // [b, c], likewise
};

struct PointwiseBackwardArguments {
  PointwiseArguments operands;  // sums is not used
  const void* grad;             // [b, c], gradient of the sums
  void* student_result;         // laid out as the student
  void* third_result;           // likewise; null where the kind has no third
};

// ------------------------------------------------------------------------------------------------ gram

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

// ------------------------------------------------------------------------------------------------ spectral

// Two spectra of pairs (re, im) that lie alike. The bins of a sample are runs of frames * inner neighbours, `inner` of each
// frame, so that the bins that count are the first ones of each run.
struct SpectralArguments {
  Dtype dtype;
  int64_t batch, bins, frames, inner;  // bins: of a sample
  const void* student;
  const void* teacher;
  double exponent, eps;
  Padding padding;
  void* magnitude;  // [b], float (double for f64): forward's results, which are means, or the gradients that backward reads
  void* complex;    // likewise
  void* result;     // backward's, laid out as student
  void* workspace;  // as in TapArguments

  int64_t run() const { return frames * inner; }
};

// ------------------------------------------------------------------------------------------------ divergence

enum class DivergenceKind { kl, reverse_kl, jsd };

// Two logit tensors [outer, classes, inner]; a row is one (outer, inner).
struct DivergenceArguments {
  Dtype dtype;
  DivergenceKind kind;
  double beta, temperature;
  int64_t outer, classes, inner;
  const void* student;
  const void* teacher;
};

// Numbers that forward saves for each row, as planes [number][row], float (double for f64): maximum and log-sum-exp of the
// student's row, those of the teacher's, and KL(q || p) or KL(q || m). Both log-sum-exp of a dead row are infinite.
enum DivergenceSaved { kStudentMax, kStudentLog, kTeacherMax, kTeacherLog, kMoment };
inline int64_t divergence_saved(DivergenceKind kind) { return kind == DivergenceKind::kl ? kMoment : kMoment + 1; }

struct DivergenceForwardArguments {
  DivergenceArguments of;
  const bool* ignore;  // [row]; null: no row is
  void* values;        // [row], float (double for f64)
  void* saved;         // null: not wanted
};

struct DivergenceBackwardArguments {
  DivergenceArguments of;
  const void* value_grads;  // [row], float (double for f64), as saved
  const void* saved;
  void* result;  // gradient of the student's logits
};

// ------------------------------------------------------------------------------------------------ project

// A feature of project: x[b, c, p].
struct ProjectFeature {
  const void* x;
  Dtype dtype;
  bool channels_last;  // x lies as [b, p, c] instead of [b, c, p]
};

struct ProjectArguments {
  bool is_double;  // sums, parameters and their gradients
  int64_t batch, student_channels, teacher_channels, frames, bands;
  ProjectFeature student;
  const ProjectFeature* teachers;
  int64_t teacher_count;
  const void* weight;     // [d, c]
  const void* bias;       // [d]; may be null
  const void* attention;  // [b, j]; null: one teacher, as it is
  Padding padding;
  void* errors;  // [b]; null in backward
};

struct ProjectBackwardArguments {
  ProjectArguments forward;
  const void* error_grads;  // [b]
  void* student_grad;       // laid out as the student; null: not wanted, as the next three
  void* weight_grad;        // [d, c]
  void* bias_grad;          // [d]
  void* attention_grad;     // [b, j]
};

// ------------------------------------------------------------------------------------------------ dots

// Products of rows x[r, k] and y[r, k], contiguous: x.x, y.y, x.y, x.e, e.e with e = y - x; and the sums of x and of e.
constexpr int kDotProducts = 7;

struct DotsArguments {
  Dtype dtype;
  const void* x;
  const void* y;
  int64_t rows, columns;
  double* dots;  // [r, kDotProducts]; backward does not use it
};

struct DotsBackwardArguments {
  DotsArguments dots;
  const double* grads;  // [r, kDotProducts]
  void* x_grad;         // [r, k], or null, as is y_grad
  void* y_grad;
};

// ------------------------------------------------------------------------------------------------ the kernels

// The list of all kernels, X(name, what it takes), each of them once. From it are made the CPU's tables
// (cpu/kernels.h), the declarations of CUDA's launchers (cuda/kernels.h), what a device is for torch, and what it
// registers there (torch/ops.h).

// Served by the CPU and by CUDA, which wants scratch memory for them: <name>_workspace(arguments) says how many bytes.
#define ABCKD_KERNELS_WITH_WORKSPACE(X)    \
  X(tap_forward, TapArguments<TapLayer>)   \
  X(compress_forward, CompressArguments)   \
  X(spectral_forward, SpectralArguments)

// Served by the CPU and by CUDA.
#define ABCKD_CUDA_KERNELS(X)                        \
  ABCKD_KERNELS_WITH_WORKSPACE(X)                    \
  X(tap_backward, TapArguments<TapBackwardLayer>)    \
  X(compress_backward, CompressBackwardArguments)    \
  X(spectral_backward, SpectralArguments)            \
  X(divergence_forward, DivergenceForwardArguments)  \
  X(divergence_backward, DivergenceBackwardArguments)

// Served by the CPU.
#define ABCKD_KERNELS(X)                             \
  ABCKD_CUDA_KERNELS(X)                              \
  X(pointwise_forward, PointwiseArguments)           \
  X(pointwise_backward, PointwiseBackwardArguments)  \
  X(gram_forward, GramArguments)                     \
  X(gram_backward, GramBackwardArguments)            \
  X(project_forward, ProjectArguments)               \
  X(project_backward, ProjectBackwardArguments)      \
  X(dots_forward, DotsArguments)                     \
  X(dots_backward, DotsBackwardArguments)

}  // namespace abckd
