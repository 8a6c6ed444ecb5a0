// What is remembered of each byte, to find races: accesses of which none happens before the other, one of them a store.
// Order comes from __syncthreads and __syncwarp only, never from the order in which the fibers ran.
#pragma once
#include <cstdint>
#include <string>

#include "memory.h"

namespace simt {

// Accesses that don't race with each other: all loads of a byte since its last store, or all atomics. Kept are the
// youngest lanes of one warp, plus one thread of another warp or block: any other access happened before one of these, or
// whatever races with it races with one of these too. (The exception: lanes of one warp that access the byte between
// different meetings and are unordered. The younger ones replace the older, and a race with the older is missed.)
// Dates are (interval, thread, meetings of its warp); see machine.h.
struct Accesses {
  std::uint32_t interval, meetings, lanes;
  std::uint32_t other_interval;
  std::uint16_t warp, other_thread;

  void add(std::uint32_t horizon);
  // A thread whose access is unordered with what the running thread does now, and the interval of it.
  bool find_unordered(std::uint32_t horizon, int& thread, std::uint32_t& when) const;
};

// Atomics are rare, and lie elsewhere.
struct Shadow {
  std::uint32_t store_interval, store_meetings;
  std::uint16_t store_thread;
  bool has_atomics;
  Accesses loads;
};

// Before each launch.
void forget_atomics();

// Remembers the running thread's access. If it races with an earlier one: returns true, and who that was.
// horizon: the first interval that can matter (of the launch for global, of the block for shared memory).
bool race(Shadow& shadow, Access access, std::uint32_t horizon, std::string& other);

}  // namespace simt
