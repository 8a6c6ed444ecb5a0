#include "position.h"

#include <unordered_set>

#include "fibers.h"
#include "machine.h"

namespace simt {
namespace {

std::unordered_set<std::uint64_t> blocks_in_loops;
std::uint64_t lately_added[4096];

std::uint64_t membership(std::uintptr_t loop, std::uintptr_t block) { return mix(loop, block); }

void add_to_loop(std::uintptr_t loop, std::uintptr_t block) {
  const std::uint64_t key = membership(loop, block);
  if (lately_added[key % 4096] == key) return;
  lately_added[key % 4096] = key;
  blocks_in_loops.insert(key);
}

}  // namespace

std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
  return hash ^ hash >> 32;
}

bool is_in_loop(const Iteration& iteration) { return blocks_in_loops.count(membership(iteration.loop, iteration.block)) != 0; }

void Position::enter_block(const Caller& caller) {
  const auto* hook = static_cast<const std::uintptr_t*>(caller.frame);
  const auto pc = reinterpret_cast<std::uintptr_t>(caller.pc);
  const std::uintptr_t frame = hook[0], from = reinterpret_cast<const std::uintptr_t*>(frame)[1];
  // Stacks grow downwards: calls with lower frames have returned.
  while (calls_ && (call_[calls_ - 1].frame < frame ||
                    (call_[calls_ - 1].frame == frame && call_[calls_ - 1].from != from))) {
    blocks_ = call_[--calls_].first_block;
  }
  if (calls_ == 0 || call_[calls_ - 1].frame != frame) {
    if (calls_ == kMaxCalls) return;
    call_[calls_++] = {frame, from, blocks_};
  }
  for (int i = blocks_; i-- > call_[calls_ - 1].first_block;) {
    if (block_[i].pc != pc) continue;
    for (int inside = i; inside < blocks_; ++inside) add_to_loop(pc, block_[inside].pc);
    ++block_[i].returns;
    blocks_ = i + 1;
    return;
  }
  if (blocks_ < kMaxBlocks) block_[blocks_++] = {pc, 0};
}

std::uint64_t call_path(const Caller& caller) {
  std::uint64_t hash = 0;
  const auto* frame = static_cast<const std::uintptr_t*>(caller.frame);
  while (reinterpret_cast<std::uintptr_t>(frame) - machine.own_stack < kStackBytes) {
    hash = mix(hash, frame[1]);
    frame = reinterpret_cast<const std::uintptr_t*>(frame[0]);
  }
  return hash;
}

}  // namespace simt
