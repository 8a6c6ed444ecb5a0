// The one block that runs at a time, and how to give up on it.
#pragma once
#include <cstdint>
#include <string>

#include "../include/simt.h"
#include "../include/simt/runtime.h"
#include "position.h"

namespace simt {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr std::size_t kMaxSharedBytes = 48 << 10;

// What a thread waits for. Two threads meet where everything but value and source is the same.
struct Operation {
  const char* name;
  Place place;
  unsigned mask;  // of lanes; unused by the block's barrier
  std::uint64_t value;
  int source;
};

enum class State : unsigned char { ready, at_barrier, at_meeting, finished };

struct Thread {
  int number, warp, lane;
  uint3 index;
  State state;
  Operation operation;
  std::uint64_t result;
};

// Time. An interval lies between two barriers of one block; intervals are numbered through all launches. Within an interval,
// `meetings` of a warp (by __syncwarp) is the date of an access of its lanes, and known[t][u] says up to which date lane t
// knows lane u's accesses to have happened: lanes that meet tell each other what they know.
struct Warp {
  std::uint32_t meetings = 1;  // so that a lane knows of nothing at first
  std::uint32_t known_to_all = 0;
  std::uint32_t known[kWarp][kWarp] = {};
};

struct Machine {
  bool in_kernel = false;         // a thread of a kernel runs right now
  std::uintptr_t own_stack = 0;   // of that thread
  Thread* thread = nullptr;
  Launch launch;
  Counters* counters = nullptr;
  int thread_count = 0, finished = 0;
  std::uint32_t interval = 0, block_start = 0, launch_start = 0;  // now, and the first ones of block and launch
  Thread threads[kMaxThreads];
  Position positions[kMaxThreads];
  Warp warps[kMaxThreads / kWarp];

  unsigned existing_lanes(int warp) const {
    const int lanes = thread_count - warp * kWarp;
    return lanes >= kWarp ? ~0u : (1u << lanes) - 1;
  }
};
extern Machine machine;

// A kernel's thread is inside the runtime, whose own accesses are nobody's business: the linker may have given it
// an instrumented copy of some inline function of the standard library.
struct InRuntime {
  InRuntime() { machine.in_kernel = false; }
  ~InRuntime() { machine.in_kernel = true; }
};

// Ends the launch with an Error about the running thread. pc: the instruction after the one at fault; null: `what` says where.
[[noreturn]] void fail(const void* pc, std::string what);

bool is_left_out(Place place);  // see leave_out_barrier

std::string coordinates(const uint3& index);
std::string thread_name(int number);                     // "thread (3, 0, 0)"
std::string block_of_interval(std::uint32_t interval);   // "block (1, 0, 0)"
std::string at(Place place);                             // "__FILE__:__LINE__"

}  // namespace simt
