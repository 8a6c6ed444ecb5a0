// Warp operations: lanes wait for the others of their mask.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "fibers.h"
#include "scheduler.h"
#include "traffic.h"

namespace simt {
namespace {

// The lanes of the mask come to know each other's accesses, and those that any of them knew of.
void share_knowledge(Warp& warp, unsigned mask, unsigned existing) {
  const std::uint32_t now = warp.meetings++;
  if (mask == existing) {
    warp.known_to_all = now;
    return;
  }
  std::uint32_t joint[kWarp] = {};
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    for (int other = 0; other < kWarp; ++other) joint[other] = std::max(joint[other], warp.known[lane][other]);
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (mask >> lane & 1) joint[lane] = now;
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (mask >> lane & 1) std::memcpy(warp.known[lane], joint, sizeof joint);
  }
}

// All lanes of the mask have come: each gets its result.
void meet(Warp& warp, Thread* lanes, unsigned mask, unsigned existing) {
  const bool is_vote = lanes[__builtin_ctz(mask)].operation.source < 0;
  std::uint64_t votes = 0;
  unsigned unfinished = 0;
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) && lanes[lane].operation.value) votes |= std::uint64_t{1} << lane;
    if ((existing >> lane & 1) && lanes[lane].state != State::finished) unfinished |= 1u << lane;
  }
  // Shuffles and votes order no accesses of memory.
  if (std::strcmp(lanes[__builtin_ctz(mask)].operation.name, "__syncwarp") == 0) share_knowledge(warp, mask, existing);
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    lanes[lane].result = is_vote ? votes : lanes[lanes[lane].operation.source].operation.value;
    lanes[lane].state = State::ready;
  }
  if (mask == unfinished) close_requests(lanes[__builtin_ctz(mask)].warp);
}

std::uint64_t arrive(const char* name, unsigned mask, std::uint64_t value, int source, Place place,
                     std::uint64_t& counter) {
  const InRuntime guard;
  Thread& self = *machine.thread;
  const unsigned existing = machine.existing_lanes(self.warp);
  self.operation = {name, place, mask, value, source};
  if (!(mask >> self.lane & 1)) {
    fail(nullptr, "warp operation without its caller: " + describe(self.operation) + ", called by lane " +
                      std::to_string(self.lane));
  }
  if (source >= 0 && (source >= kWarp || !(mask & existing & 1u << source))) {
    const bool exists = source < kWarp && (existing >> source & 1);
    fail(nullptr, "shuffle from outside the mask: " + describe(self.operation) + " reads lane " + std::to_string(source) +
                      (exists ? "" : ", which the block does not have"));
  }
  self.state = State::at_meeting;
  Thread* const lanes = machine.threads + self.warp * kWarp;
  mask &= existing;
  bool complete = true;
  for (int lane = 0; lane < kWarp && complete; ++lane) {
    if (!(mask >> lane & 1)) continue;
    complete = lanes[lane].state == State::at_meeting && same_meeting(lanes[lane].operation, self.operation);
  }
  if (complete) {
    ++counter;
    meet(machine.warps[self.warp], lanes, mask, existing);
  } else {
    wait();
  }
  return self.result;
}

}  // namespace

void wait() { fiber(machine.thread->number).yield(); }

bool same_meeting(const Operation& a, const Operation& b) {
  return a.mask == b.mask && a.place.line == b.place.line && std::strcmp(a.name, b.name) == 0 &&
         std::strcmp(a.place.file, b.place.file) == 0;
}

std::string describe(const Operation& operation) {
  std::string text = operation.name + (" at " + at(operation.place));
  if (operation.mask) {
    char mask[32];
    std::snprintf(mask, sizeof mask, " with mask 0x%08x", operation.mask);
    text += mask;
  }
  return text;
}

void sync_warp(unsigned mask, Place place) {
  if (is_left_out(place)) return;
  arrive("__syncwarp", mask, 0, -1, place, machine.counters->warp_syncs);
}

unsigned ballot(const char* operation, unsigned mask, bool predicate, Place place) {
  return static_cast<unsigned>(arrive(operation, mask, predicate, -1, place, machine.counters->votes));
}

std::uint64_t shuffle(const char* operation, unsigned mask, std::uint64_t value, int source, Place place) {
  return arrive(operation, mask, value, source, place, machine.counters->shuffles);
}

}  // namespace simt
