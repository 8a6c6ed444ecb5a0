#include "shadow.h"

#include <algorithm>
#include <unordered_map>

#include "machine.h"

namespace simt {
namespace {

std::unordered_map<const Shadow*, Accesses> all_atomics;

// Is an access of that date unordered with what the running thread does now?
inline bool unordered(std::uint32_t interval, int thread, std::uint32_t meetings, std::uint32_t horizon) {
  if (interval < horizon) return false;
  if (interval < machine.block_start) return true;  // another block
  if (interval < machine.interval) return false;    // a barrier lies between
  const Thread& self = *machine.thread;
  if (thread / kWarp != self.warp) return true;
  if (thread == self.number) return false;
  const Warp& warp = machine.warps[self.warp];
  return std::max(warp.known[self.lane][thread % kWarp], warp.known_to_all) < meetings;
}

std::string describe(const char* access, std::uint32_t interval, int thread) {
  const bool same_block = interval >= machine.block_start;
  return std::string(access) + " by " + (same_block ? "" : block_of_interval(interval) + ", ") + thread_name(thread) +
         (same_block ? ", with no barrier between" : " in the same launch");
}

// Returns whether one of the accesses races with what the running thread does now, and describes it.
bool races_with(const Accesses& accesses, const char* what, std::uint32_t horizon, std::string& other) {
  int thread;
  std::uint32_t when;
  if (!accesses.find_unordered(horizon, thread, when)) return false;
  other = describe(what, when, thread);
  return true;
}

bool races_with_atomics(const Shadow& shadow, std::uint32_t horizon, std::string& other) {
  if (!shadow.has_atomics) return false;
  const auto found = all_atomics.find(&shadow);
  return found != all_atomics.end() && races_with(found->second, "atomic", horizon, other);
}

}  // namespace

void forget_atomics() { all_atomics.clear(); }

bool Accesses::find_unordered(std::uint32_t horizon, int& thread, std::uint32_t& when) const {
  for (std::uint32_t rest = lanes; rest; rest &= rest - 1) {
    thread = warp * kWarp + __builtin_ctz(rest);
    when = interval;
    if (unordered(interval, thread, meetings, horizon)) return true;
  }
  thread = other_thread;
  when = other_interval;
  // Date 0 of its warp: if the other thread is of the running one's warp, the youngest lanes are not, and were found above.
  return unordered(other_interval, other_thread, 0, horizon);
}

void Accesses::add(std::uint32_t horizon) {
  const Thread& self = *machine.thread;
  const std::uint32_t lane = 1u << self.lane, now = machine.warps[self.warp].meetings;
  if (interval == machine.interval && warp == self.warp) {
    lanes = meetings == now ? lanes | lane : lane;
  } else {
    // One of another block stays: only the next launch comes after it.
    const bool other_is_of_another_block = other_interval >= horizon && other_interval < machine.block_start;
    const bool unordered_with_youngest =
        interval >= horizon && (interval < machine.block_start || interval == machine.interval);
    if (!other_is_of_another_block && unordered_with_youngest) {
      other_interval = interval;
      other_thread = static_cast<std::uint16_t>(warp * kWarp + __builtin_ctz(lanes));
    }
    interval = machine.interval;
    warp = static_cast<std::uint16_t>(self.warp);
    lanes = lane;
  }
  meetings = now;
}

bool race(Shadow& shadow, Access access, std::uint32_t horizon, std::string& other) {
  if (unordered(shadow.store_interval, shadow.store_thread, shadow.store_meetings, horizon)) {
    other = describe("store", shadow.store_interval, shadow.store_thread);
    return true;
  }
  if (access != Access::load && races_with(shadow.loads, "load", horizon, other)) return true;
  if (access != Access::atomic && races_with_atomics(shadow, horizon, other)) return true;
  if (access == Access::load) {
    shadow.loads.add(horizon);
  } else if (access == Access::atomic) {
    shadow.has_atomics = true;
    all_atomics[&shadow].add(horizon);
  } else {
    if (shadow.has_atomics) all_atomics.erase(&shadow);
    const Thread& self = *machine.thread;
    shadow = {};
    shadow.store_interval = machine.interval;
    shadow.store_meetings = machine.warps[self.warp].meetings;
    shadow.store_thread = static_cast<std::uint16_t>(self.number);
  }
  return false;
}

}  // namespace simt
