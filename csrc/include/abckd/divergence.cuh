// divergence on a GPU: Kullback-Leibler and Jensen-Shannon divergences of rows of logits, and their derivative.
//
// A thread keeps maxima and sums of its own, relative to those maxima, and brings them up to date once per batch of loads;
// threads are joined behind the loop, which therefore has no barriers. Rows in memory (inner = 1) are read by teams: 8, 16 or
// 32 lanes, or a block, per row, 16 bytes at multiples of 16 bytes, wherever rows begin. Planes (inner > 1): lanes lie along the
// positions, the warps of a block share the classes. Jensen-Shannon reads its logits a second time, behind the normalisers,
// unless a team's registers hold the row. Sums are float (double for double) and always added in the same order.
#pragma once
#include "arguments.h"
#include "elements.cuh"
#include "launch.cuh"
#include "warp.cuh"

#include <limits>

namespace abckd::cuda {

constexpr int kDivergenceWarps = 4;
constexpr int kDivergenceThreads = kDivergenceWarps * kWarp;
constexpr int kDivergenceBlocks = 4;  // per multiprocessor, at least; caps registers at 128
constexpr int kDivergencePlaneBlocks = 3;  // likewise where classes are planes: at 168, since 128 spill
constexpr int kSpans = 2;             // of 16 bytes that a thread of a team reads at once of each network

struct DivergenceForward {
  DivergenceKind kind;
  int64_t outer, classes, inner;
  double scale, beta;  // scale: 1 / temperature
  const void* student;
  const void* teacher;
  const bool* ignore;
  void* values;
  void* saved;
  int team;     // rows: threads per row
  bool vector;  // rows: all tensors begin equally far from a multiple of 16 bytes; planes: classes are aligned to that
};

struct DivergenceBackward {
  DivergenceKind kind;
  int64_t outer, classes, inner;
  double scale, beta;
  const void* student;
  const void* teacher;
  const void* saved;
  const void* value_grads;
  void* result;
  int team;
  bool vector;
};

template <typename A>
__device__ __forceinline__ A infinity() {
  return std::numeric_limits<A>::infinity();
}

// Of A's own type: whoever compiles this for the host may find double's exp alone.
template <typename A>
__device__ __forceinline__ A exponential(A x) {
  return exp(x);
}

// The sums over classes of a network that weighs (p) against another (q).
template <typename A>
struct Tally {
  A max_p = std::numeric_limits<A>::lowest(), max_q = std::numeric_limits<A>::lowest();
  A sum_p = 0, sum_q = 0;
  A cross = 0;  // sum of e^((p - max_p) scale) ((p - max_p) - (q - max_q))
  bool missing = false;  // a class that p has and q has not

  // Relative to other maxima, which must not be smaller.
  __device__ void move(A new_p, A new_q, A scale) {
    const A down_p = max_p - new_p, down_q = max_q - new_q, factor = exponential(down_p * scale);
    // Without a sum the old maximum is no logit, and its distance may be infinite.
    cross = sum_p > 0 ? (cross + sum_p * (down_p - down_q)) * factor : A(0);
    sum_p *= factor;
    sum_q *= exponential(down_q * scale);
    max_p = new_p;
    max_q = new_q;
  }

  // The maxima must not be smaller than p and q.
  template <bool kCross>
  __device__ void add(A p, A q, A scale) {
    const A below_p = p - max_p, below_q = q - max_q, weight = exponential(below_p * scale);
    sum_p += weight;
    sum_q += exponential(below_q * scale);
    if (kCross) {
      cross += weight > 0 ? weight * (below_p - below_q) : A(0);
      missing |= q == -infinity<A>() && p > -infinity<A>();
    }
  }

  // Joins the tallies of neighbouring lanes, `width` (a power of two) each.
  __device__ void join_lanes(int width, A scale) {
    A new_p = max_p, new_q = max_q;
    for (int offset = 1; offset < width; offset *= 2) {
      new_p = max(new_p, __shfl_xor_sync(kAllLanes, new_p, offset));
      new_q = max(new_q, __shfl_xor_sync(kAllLanes, new_q, offset));
    }
    move(new_p, new_q, scale);
    for (int offset = 1; offset < width; offset *= 2) {
      sum_p += __shfl_xor_sync(kAllLanes, sum_p, offset);
      sum_q += __shfl_xor_sync(kAllLanes, sum_q, offset);
      cross += __shfl_xor_sync(kAllLanes, cross, offset);
      missing |= __shfl_xor_sync(kAllLanes, int(missing), offset) != 0;
    }
  }

  __device__ void join(Tally other, A scale) {
    const A new_p = max(max_p, other.max_p), new_q = max(max_q, other.max_q);
    move(new_p, new_q, scale);
    other.move(new_p, new_q, scale);
    sum_p += other.sum_p;
    sum_q += other.sum_q;
    cross += other.cross;
    missing |= other.missing;
  }

  // In shared memory, a plane of `planes` numbers for each of kTallied.
  __device__ void store(A* to, int planes) const {
    to[0] = max_p;
    to[planes] = max_q;
    to[2 * planes] = sum_p;
    to[3 * planes] = sum_q;
    to[4 * planes] = missing ? infinity<A>() : cross;
  }

  __device__ static Tally load(const A* from, int planes) {
    Tally tally;
    tally.max_p = from[0];
    tally.max_q = from[planes];
    tally.sum_p = from[2 * planes];
    tally.sum_q = from[3 * planes];
    tally.cross = from[4 * planes];
    tally.missing = tally.cross == infinity<A>();
    return tally;
  }
};

constexpr int kTallied = 5;      // numbers of a Tally in shared memory
constexpr int kNormalisers = 4;  // numbers of a row's Normalisers

// log p = (x - max) scale - log, for the classes of a row; both log are infinite in a dead row.
template <typename A>
struct Normalisers {
  A max_s, log_s, max_t, log_t;

  // As of a Tally.
  __device__ void store(A* to, int planes) const {
    to[0] = max_s;
    to[planes] = log_s;
    to[2 * planes] = max_t;
    to[3 * planes] = log_t;
  }

  __device__ static Normalisers load(const A* from, int planes) {
    return {from[0], from[planes], from[2 * planes], from[3 * planes]};
  }
};

// A row's normalisers and value, from its sums; Jensen-Shannon has no value yet.
template <typename A>
struct Finished {
  Normalisers<A> row;
  A value;

  __device__ Finished(const Tally<A>& sums, DivergenceKind kind, bool ignored, A scale) {
    const bool dead = ignored || sums.sum_p == 0 || sums.sum_q == 0, swapped = kind == DivergenceKind::reverse_kl;
    const A log_p = dead ? infinity<A>() : A(log(sums.sum_p)), log_q = dead ? infinity<A>() : A(log(sums.sum_q));
    const A max_p = dead ? A(0) : sums.max_p, max_q = dead ? A(0) : sums.max_q;
    row = swapped ? Normalisers<A>{max_p, log_p, max_q, log_q} : Normalisers<A>{max_q, log_q, max_p, log_p};
    A result = sums.cross / sums.sum_p * scale - (log_p - log_q);
    if (sums.missing) result = infinity<A>() + A(0) * (sums.sum_p + sums.sum_q);
    value = dead || result < 0 ? A(0) : result;
  }

  __device__ bool dead() const { return row.log_s == infinity<A>(); }

  // number 0 .. 4: what is saved; 5: the value.
  __device__ A number(int index, A moment) const {
    const A of_networks = index == kStudentMax ? row.max_s : index == kStudentLog ? row.log_s
                        : index == kTeacherMax ? row.max_t : row.log_t;
    return index < kMoment ? of_networks : index == kMoment ? moment : value;
  }
};

template <typename A>
struct Probabilities {
  A q, p, log_ratio;  // log(q / p)

  __device__ Probabilities(A s, A t, const Normalisers<A>& row, A scale) {
    const A below_s = (s - row.max_s) * scale, below_t = (t - row.max_t) * scale;
    q = exponential(below_s - row.log_s);
    p = exponential(below_t - row.log_t);
    log_ratio = (below_s - below_t) - (row.log_s - row.log_t);
  }

  // log(q / m) and log(p / m), of which either is right only where its own probability is not zero.
  __device__ void of_mixture(A beta, A& log_q, A& log_p) const {
    A mixture = beta * p + (1 - beta) * q;
    if (mixture < std::numeric_limits<A>::min()) mixture = std::numeric_limits<A>::min();
    const A log_most = log((p >= q ? p : q) / mixture);
    log_q = p >= q ? log_most + log_ratio : log_most;
    log_p = p >= q ? log_most : log_most - log_ratio;
  }

  __device__ void add_to_mixture(A beta, A& of_q, A& of_p) const {
    A log_q, log_p;
    of_mixture(beta, log_q, log_p);
    of_q += q == 0 ? A(0) : q * log_q;
    of_p += p == 0 ? A(0) : p * log_p;
  }
};

// d value / d student logit, times `grad`, which holds the value's gradient and 1 / temperature.
template <typename A, DivergenceKind kKind>
__device__ __forceinline__ A slope(A s, A t, const Normalisers<A>& row, A moment, A grad, A scale, A beta) {
  const Probabilities<A> at(s, t, row, scale);
  if constexpr (kKind == DivergenceKind::kl) return (at.q - at.p) * grad;
  if constexpr (kKind == DivergenceKind::reverse_kl) return at.q == 0 ? A(0) : at.q * (at.log_ratio - moment) * grad;
  A log_q, log_p;
  at.of_mixture(beta, log_q, log_p);
  return at.q == 0 ? A(0) : at.q * (log_q - moment) * (grad * (1 - beta));
}

// ---------------------------------------------------------------------------------------------- rows

// 16 bytes of a row, at a multiple of 16 bytes; the first and the last of a row may be neighbours' in part.
template <typename E>
struct Span {
  static constexpr int kCount = 16 / sizeof(E);
  E values[kCount];

  // Elements first .. of a row of `classes`; those that it has not are -inf.
  __device__ void read(const E* row, int64_t first, int64_t classes, bool vector) {
    if (vector && first >= 0 && first + kCount <= classes) {
      const uint4 bits = __ldg(reinterpret_cast<const uint4*>(row + first));
      memcpy(this, &bits, sizeof(bits));
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const bool exists = first + i >= 0 && first + i < classes;
        values[i] = exists ? __ldg(row + first + i) : Element<E>::narrow(-infinity<Accumulator<E>>());
      }
    }
  }

  __device__ void write(E* row, int64_t first, int64_t classes, bool vector) const {
    if (vector && first >= 0 && first + kCount <= classes) {
      uint4 bits;
      memcpy(&bits, this, sizeof(bits));
      __stcg(reinterpret_cast<uint4*>(row + first), bits);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (first + i >= 0 && first + i < classes) __stcg(row + first + i, values[i]);
      }
    }
  }

  __device__ Accumulator<E> at(int i) const { return Element<E>::widen(values[i]); }
};

// Which row is a thread's, its number in the row's team, and where the team's spans lie.
template <typename E>
struct Team {
  int64_t row;
  int threads, index;
  int64_t classes;
  int shift;  // elements between the multiple of 16 bytes before the row and the row
  bool vector;

  __device__ Team(const void* logits, int64_t classes, int threads, bool vector)
      : row(int64_t(blockIdx.x) * (kDivergenceThreads / threads) + threadIdx.x / threads),
        threads(threads), index(threadIdx.x % threads), classes(classes), shift(0), vector(vector) {
    const auto address = reinterpret_cast<uintptr_t>(static_cast<const E*>(logits) + row * classes);
    if (vector) shift = static_cast<int>(address % 16 / sizeof(E));
  }

  __device__ int64_t step() const { return int64_t(threads) * kSpans * Span<E>::kCount; }  // classes per batch

  // The first class of the thread's span, in the batch that begins at class `begin`.
  __device__ int64_t first(int64_t begin, int span) const {
    return begin - shift + (int64_t(span) * threads + index) * Span<E>::kCount;
  }

  __device__ void read(Span<E> (&spans)[kSpans], const E* row, int64_t begin) const {
#pragma unroll
    for (int k = 0; k < kSpans; ++k) spans[k].read(row, first(begin, k), classes, vector);
  }
};

// Joins the values of a block's warps, in their order, in every thread.
template <typename A>
__device__ A sum_over_warps(A value, A* by_warp) {
  if (lane_index() == 0) by_warp[warp_index()] = value;
  __syncthreads();
  A total = 0;
#pragma unroll
  for (int w = 0; w < kDivergenceWarps; ++w) total += by_warp[w];
  return total;
}

// shared: kTallied + 2 numbers per warp.
template <typename E, bool kMixture>
__device__ void divergence_rows(const DivergenceForward& a, Accumulator<E>* shared) {
  using A = Accumulator<E>;
  const Team<E> team(a.student, a.classes, a.team, a.vector);
  const bool swapped = a.kind == DivergenceKind::reverse_kl, exists = team.row < a.outer;
  const bool ignored = !exists || (a.ignore != nullptr && a.ignore[team.row]);
  const E* first = static_cast<const E*>(swapped ? a.student : a.teacher) + team.row * a.classes;
  const E* second = static_cast<const E*>(swapped ? a.teacher : a.student) + team.row * a.classes;
  const A scale = A(a.scale);
  Span<E> p[kSpans], q[kSpans];

  Tally<A> sums;
  for (int64_t begin = 0; !ignored && begin < a.classes + team.shift; begin += team.step()) {
    team.read(p, first, begin);
    team.read(q, second, begin);
    A max_p = sums.max_p, max_q = sums.max_q;
#pragma unroll
    for (int k = 0; k < kSpans; ++k) {
#pragma unroll
      for (int i = 0; i < Span<E>::kCount; ++i) {
        max_p = max(max_p, p[k].at(i));
        max_q = max(max_q, q[k].at(i));
      }
    }
    if (max_p > sums.max_p || max_q > sums.max_q) sums.move(max_p, max_q, scale);
#pragma unroll
    for (int k = 0; k < kSpans; ++k) {
#pragma unroll
      for (int i = 0; i < Span<E>::kCount; ++i) sums.template add<!kMixture>(p[k].at(i), q[k].at(i), scale);
    }
  }
  sums.join_lanes(a.team < kWarp ? a.team : kWarp, scale);
  if (a.team > kWarp) {
    if (lane_index() == 0) sums.store(shared + warp_index(), kDivergenceWarps);
    __syncthreads();
    sums = Tally<A>::load(shared, kDivergenceWarps);
#pragma unroll
    for (int w = 1; w < kDivergenceWarps; ++w) sums.join(Tally<A>::load(shared + w, kDivergenceWarps), scale);
  }

  Finished<A> done(sums, a.kind, ignored, scale);
  A moment = done.value;
  if (kMixture) {
    const A beta = A(a.beta);
    const bool one_batch = a.classes + team.shift <= team.step();
    A of_q = 0, of_p = 0;
    for (int64_t begin = 0; !done.dead() && begin < a.classes + team.shift; begin += team.step()) {
      if (!one_batch) {
        team.read(p, first, begin);
        team.read(q, second, begin);
      }
#pragma unroll
      for (int k = 0; k < kSpans; ++k) {
#pragma unroll
        for (int i = 0; i < Span<E>::kCount; ++i) {
          Probabilities<A>(q[k].at(i), p[k].at(i), done.row, scale).add_to_mixture(beta, of_q, of_p);
        }
      }
    }
    for (int offset = 1; offset < kWarp && offset < a.team; offset *= 2) {
      of_q += __shfl_xor_sync(kAllLanes, of_q, offset);
      of_p += __shfl_xor_sync(kAllLanes, of_p, offset);
    }
    if (a.team > kWarp) {
      of_q = sum_over_warps(of_q, shared + kTallied * kDivergenceWarps);
      of_p = sum_over_warps(of_p, shared + (kTallied + 1) * kDivergenceWarps);
    }
    const A value = beta * of_p + (1 - beta) * of_q;
    done.value = value < 0 ? A(0) : value;
    moment = of_q < 0 ? A(0) : of_q;
  }
  // A thread per number.
  if (!exists || team.index > kMoment + 1) return;
  const A number = done.number(team.index, moment);
  if (team.index == kMoment + 1) {
    static_cast<A*>(a.values)[team.row] = number;
  } else if (a.saved != nullptr && (team.index < kMoment || a.kind != DivergenceKind::kl)) {
    static_cast<A*>(a.saved)[team.index * a.outer + team.row] = number;
  }
}

// Reads both logits once (Jensen-Shannon: twice, if a team's registers don't hold a row), writes up to 6 numbers per row.
template <typename E>
__global__ void __launch_bounds__(kDivergenceThreads, kDivergenceBlocks)
    divergence_rows_kernel(const __grid_constant__ DivergenceForward a) {
  ABCKD_SHARED(Accumulator<E>, shared, (kTallied + 2) * kDivergenceWarps);
  a.kind == DivergenceKind::jsd ? divergence_rows<E, true>(a, shared) : divergence_rows<E, false>(a, shared);
}

template <typename E, DivergenceKind kKind>
__device__ void divergence_rows_backward(const DivergenceBackward& a) {
  using A = Accumulator<E>;
  const Team<E> team(a.student, a.classes, a.team, a.vector);
  const bool exists = team.row < a.outer;
  const A scale = A(a.scale), beta = A(a.beta);
  const int lane = lane_index(), in_warp = a.team < kWarp ? a.team : kWarp;
  // A lane of each warp reads each number.
  const int number = lane % in_warp;
  A own = 0;
  if (exists && number < kMoment + (kKind != DivergenceKind::kl)) {
    own = __ldg(static_cast<const A*>(a.saved) + number * a.outer + team.row);
  }
  if (exists && number == kMoment + 1) own = __ldg(static_cast<const A*>(a.value_grads) + team.row) * scale;
  const int first_lane = lane - number;
  const auto of = [&](int which) { return __shfl_sync(kAllLanes, own, first_lane + which); };
  const Normalisers<A> row{of(kStudentMax), of(kStudentLog), of(kTeacherMax), of(kTeacherLog)};
  const A moment = of(kMoment), grad = of(kMoment + 1);
  if (!exists) return;
  const bool dead = row.log_s == infinity<A>();
  const int64_t offset = team.row * a.classes;
  const E* student = static_cast<const E*>(a.student) + offset;
  const E* teacher = static_cast<const E*>(a.teacher) + offset;
  E* result = static_cast<E*>(a.result) + offset;
  for (int64_t begin = 0; begin < a.classes + team.shift; begin += team.step()) {
    Span<E> s[kSpans] = {}, t[kSpans] = {};
    if (!dead) {
      team.read(s, student, begin);
      team.read(t, teacher, begin);
    }
#pragma unroll
    for (int k = 0; k < kSpans; ++k) {
#pragma unroll
      for (int i = 0; i < Span<E>::kCount; ++i) {
        const A fresh = dead ? A(0) : slope<A, kKind>(s[k].at(i), t[k].at(i), row, moment, grad, scale, beta);
        s[k].values[i] = Element<E>::narrow(fresh);
      }
      s[k].write(result, team.first(begin, k), a.classes, a.vector);
    }
  }
}

// Reads both logits once, and up to 6 numbers per row; writes the gradient.
template <typename E>
__global__ void __launch_bounds__(kDivergenceThreads, kDivergenceBlocks)
    divergence_rows_backward_kernel(const __grid_constant__ DivergenceBackward a) {
  switch (a.kind) {
    case DivergenceKind::kl: return divergence_rows_backward<E, DivergenceKind::kl>(a);
    case DivergenceKind::reverse_kl: return divergence_rows_backward<E, DivergenceKind::reverse_kl>(a);
    case DivergenceKind::jsd: return divergence_rows_backward<E, DivergenceKind::jsd>(a);
  }
}

// ---------------------------------------------------------------------------------------------- planes

// Classes that a warp reads at once: fewer where a lane has many positions, whose sums take registers.
template <typename E>
constexpr int kClassesAtOnce = sizeof(E) == 2 ? 2 : 4;

// Positions of a block: 16 bytes per lane, or 4 single ones.
template <typename E, bool kVector>
constexpr int kColumns = kWarp * Stretch<E, kVector>::kCount;

template <typename E>
constexpr int kMostColumns = kColumns<E, true>;

// shared: kTallied numbers per warp and column, and the columns' normalisers.
template <typename E, bool kMixture, bool kVector>
__device__ void divergence_planes(const DivergenceForward& a, Accumulator<E>* shared) {
  using A = Accumulator<E>;
  constexpr int kCount = Stretch<E, kVector>::kCount, kBatch = kClassesAtOnce<E>, kAll = kColumns<E, kVector>;
  const int lane = lane_index(), warp = warp_index();
  const int64_t tiles = (a.inner + kAll - 1) / kAll, outer = blockIdx.x / tiles, begin = blockIdx.x % tiles * kAll;
  const Stretch<E, kVector> stretch(begin, lane, kWarp);
  const int own = stretch.before(a.inner);
  const bool swapped = a.kind == DivergenceKind::reverse_kl;
  const int64_t offset = (outer * a.classes + warp) * a.inner + stretch.first, step = kDivergenceWarps * a.inner;
  const E* first = static_cast<const E*>(swapped ? a.student : a.teacher) + offset;
  const E* second = static_cast<const E*>(swapped ? a.teacher : a.student) + offset;
  const A scale = A(a.scale), beta = A(a.beta);
  // Calls use(p's elements, q's elements, how many classes there are) for all batches of the warp's classes.
  const auto for_each_batch = [&](const auto& use) {
    const E* of_p = first;
    const E* of_q = second;
    for (int64_t c = warp; c < a.classes; c += kBatch * kDivergenceWarps) {
      const int64_t left = (a.classes - c + kDivergenceWarps - 1) / kDivergenceWarps;
      const int few = left < kBatch ? static_cast<int>(left) : kBatch;
      typename Stretch<E, kVector>::Elements p[kBatch], q[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k, of_p += step, of_q += step) {
        p[k] = stretch.read(of_p, k < few ? own : 0);
        q[k] = stretch.read(of_q, k < few ? own : 0);
      }
      use(p, q, few);
    }
  };
  const auto column = [&](int i) { return static_cast<int>(stretch.at(i) - begin); };

  Tally<A> sums[kCount];
  for_each_batch([&](const auto& p, const auto& q, int few) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      A max_p = sums[i].max_p, max_q = sums[i].max_q;
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        if (k < few) max_p = max(max_p, Element<E>::widen(p[k].values[i]));
        if (k < few) max_q = max(max_q, Element<E>::widen(q[k].values[i]));
      }
      sums[i].move(max_p, max_q, scale);
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        if (k < few) {
          sums[i].template add<!kMixture>(Element<E>::widen(p[k].values[i]), Element<E>::widen(q[k].values[i]), scale);
        }
      }
    }
  });

  constexpr int kPlane = kDivergenceWarps * kAll;
  A* const normalisers = shared + kTallied * kPlane;
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[i].store(shared + warp * kAll + column(i), kPlane);
  __syncthreads();
  const int64_t rows = a.outer * a.inner;
  const auto write = [&](int64_t row, const Finished<A>& done, A moment) {
    static_cast<A*>(a.values)[row] = done.value;
    if (a.saved == nullptr) return;
    const int numbers = a.kind == DivergenceKind::kl ? kMoment : kMoment + 1;
#pragma unroll
    for (int n = 0; n <= kMoment; ++n) {
      if (n < numbers) static_cast<A*>(a.saved)[n * rows + row] = done.number(n, moment);
    }
  };
  for (int at = threadIdx.x; at < kAll && begin + at < a.inner; at += kDivergenceThreads) {
    const int64_t row = outer * a.inner + begin + at;
    Tally<A> total = Tally<A>::load(shared + at, kPlane);
#pragma unroll
    for (int w = 1; w < kDivergenceWarps; ++w) total.join(Tally<A>::load(shared + w * kAll + at, kPlane), scale);
    const Finished<A> done(total, a.kind, a.ignore != nullptr && a.ignore[row], scale);
    if (kMixture) {
      done.row.store(normalisers + at, kAll);
    } else {
      write(row, done, done.value);
    }
  }
  if (!kMixture) return;

  __syncthreads();
  A of_q[kCount] = {}, of_p[kCount] = {};
  for_each_batch([&](const auto& p, const auto& q, int few) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i >= own) continue;
      const auto row = Normalisers<A>::load(normalisers + column(i), kAll);
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        if (k >= few) continue;
        const Probabilities<A> at(Element<E>::widen(q[k].values[i]), Element<E>::widen(p[k].values[i]), row, scale);
        at.add_to_mixture(beta, of_q[i], of_p[i]);
      }
    }
  });
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    shared[warp * kAll + column(i)] = of_q[i];
    shared[kPlane + warp * kAll + column(i)] = of_p[i];
  }
  __syncthreads();
  for (int at = threadIdx.x; at < kAll && begin + at < a.inner; at += kDivergenceThreads) {
    A total_q = 0, total_p = 0;
#pragma unroll
    for (int w = 0; w < kDivergenceWarps; ++w) {
      total_q += shared[w * kAll + at];
      total_p += shared[kPlane + w * kAll + at];
    }
    Finished<A> done(Tally<A>{}, a.kind, true, scale);
    done.row = Normalisers<A>::load(normalisers + at, kAll);
    const A value = beta * total_p + (1 - beta) * total_q;
    done.value = done.dead() || value < 0 ? A(0) : value;
    write(outer * a.inner + begin + at, done, done.dead() || total_q < 0 ? A(0) : total_q);
  }
}

// Reads both logits once (Jensen-Shannon: twice), writes up to 6 numbers per position.
template <typename E>
__global__ void __launch_bounds__(kDivergenceThreads, kDivergencePlaneBlocks)
    divergence_planes_kernel(const __grid_constant__ DivergenceForward a) {
  ABCKD_SHARED(Accumulator<E>, shared, (kTallied * kDivergenceWarps + kNormalisers) * kMostColumns<E>);
  if (a.kind == DivergenceKind::jsd) {
    a.vector ? divergence_planes<E, true, true>(a, shared) : divergence_planes<E, true, false>(a, shared);
  } else {
    a.vector ? divergence_planes<E, false, true>(a, shared) : divergence_planes<E, false, false>(a, shared);
  }
}

// shared: the columns' numbers, kMoment + 2 each.
template <typename E, DivergenceKind kKind, bool kVector>
__device__ void divergence_planes_backward(const DivergenceBackward& a, Accumulator<E>* shared) {
  using A = Accumulator<E>;
  constexpr int kCount = Stretch<E, kVector>::kCount, kBatch = 2, kAll = kColumns<E, kVector>;
  const int lane = lane_index(), warp = warp_index();
  const int64_t tiles = (a.inner + kAll - 1) / kAll, outer = blockIdx.x / tiles, begin = blockIdx.x % tiles * kAll;
  const Stretch<E, kVector> stretch(begin, lane, kWarp);
  const int own = stretch.before(a.inner);
  const int64_t rows = a.outer * a.inner;
  const A scale = A(a.scale), beta = A(a.beta);

  for (int at = threadIdx.x; at < kAll && begin + at < a.inner; at += kDivergenceThreads) {
    const int64_t row = outer * a.inner + begin + at;
#pragma unroll
    for (int number = 0; number < kMoment + (kKind != DivergenceKind::kl); ++number) {
      shared[number * kAll + at] = __ldg(static_cast<const A*>(a.saved) + number * rows + row);
    }
    shared[(kMoment + 1) * kAll + at] = __ldg(static_cast<const A*>(a.value_grads) + row) * scale;
  }
  __syncthreads();
  Normalisers<A> normalisers[kCount] = {};
  A moments[kCount] = {}, grads[kCount] = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i >= own) continue;
    const A* const place = shared + (stretch.at(i) - begin);
    normalisers[i] = Normalisers<A>::load(place, kAll);
    if (kKind != DivergenceKind::kl) moments[i] = place[kMoment * kAll];
    grads[i] = place[(kMoment + 1) * kAll];
  }

  const int64_t offset = (outer * a.classes + warp) * a.inner + stretch.first, step = kDivergenceWarps * a.inner;
  const E* student = static_cast<const E*>(a.student) + offset;
  const E* teacher = static_cast<const E*>(a.teacher) + offset;
  E* result = static_cast<E*>(a.result) + offset;
  for (int64_t c = warp; c < a.classes; c += kBatch * kDivergenceWarps) {
    typename Stretch<E, kVector>::Elements s[kBatch], t[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k, student += step, teacher += step) {
      const int here = c + k * kDivergenceWarps < a.classes ? own : 0;
      s[k] = stretch.read(student, here);
      t[k] = stretch.read(teacher, here);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k, result += step) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const A fresh = slope<A, kKind>(Element<E>::widen(s[k].values[i]), Element<E>::widen(t[k].values[i]), normalisers[i],
                                        moments[i], grads[i], scale, beta);
        s[k].values[i] = Element<E>::narrow(normalisers[i].log_s == infinity<A>() ? A(0) : fresh);
      }
      stretch.write(result, s[k], c + k * kDivergenceWarps < a.classes ? own : 0);
    }
  }
}

template <typename E, bool kVector>
__device__ void divergence_planes_backward_of_kind(const DivergenceBackward& a, Accumulator<E>* shared) {
  switch (a.kind) {
    case DivergenceKind::kl: return divergence_planes_backward<E, DivergenceKind::kl, kVector>(a, shared);
    case DivergenceKind::reverse_kl: return divergence_planes_backward<E, DivergenceKind::reverse_kl, kVector>(a, shared);
    case DivergenceKind::jsd: return divergence_planes_backward<E, DivergenceKind::jsd, kVector>(a, shared);
  }
}

// Reads both logits once, and up to 6 numbers per position; writes the gradient.
template <typename E>
__global__ void __launch_bounds__(kDivergenceThreads, kDivergenceBlocks)
    divergence_planes_backward_kernel(const __grid_constant__ DivergenceBackward a) {
  ABCKD_SHARED(Accumulator<E>, shared, (kMoment + 2) * kMostColumns<E>);
  a.vector ? divergence_planes_backward_of_kind<E, true>(a, shared) : divergence_planes_backward_of_kind<E, false>(a, shared);
}

}  // namespace abckd::cuda
