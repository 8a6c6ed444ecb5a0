// Where in the program a thread is, so that accesses can be found that the lanes of a warp would make together.
#pragma once
#include <cstdint>

namespace simt {

// The instruction that called the runtime. Kernels and hooks keep frame pointers: a frame is {frame of the caller, return
// address}.
struct Caller {
  const void* pc;
  const void* frame;
};
#define SIMT_CALLER \
  ::simt::Caller { __builtin_return_address(0), __builtin_frame_address(0) }

// A block of code that the thread is in (or called a function from), and a loop that began before it in the same call.
// Whether the block belongs to the loop, or comes behind it, is_in_loop may tell later.
struct Iteration {
  std::uintptr_t block, loop;
  std::uint32_t number;
};

// Follows a thread through the basic blocks of its kernel. A block that is entered again before its function returned is
// the head of a loop: loops are entered through their heads, and get back to anywhere through their heads. What was passed
// on the way back is in the loop.
class Position {
 public:
  static constexpr int kMaxBlocks = 256;  // on the way from the kernel's first block; what goes beyond is not followed

  void start() { calls_ = blocks_ = 0; }
  void enter_block(const Caller& block);
  // Passes iterations to `add`, but first ones; those are known by the absence of others.
  template <typename Add>
  void each_iteration(const Add& add) const {
    for (int c = 0; c < calls_; ++c) {
      const int end = c + 1 < calls_ ? call_[c + 1].first_block : blocks_;
      for (int i = call_[c].first_block; i < end; ++i) {
        if (block_[i].returns) add(Iteration{block_[end - 1].pc, block_[i].pc, block_[i].returns});
      }
    }
  }

 private:
  static constexpr int kMaxCalls = 32;
  struct Call {
    std::uintptr_t frame, from;  // its frame and the place that called it
    int first_block;
  };
  struct Block {
    std::uintptr_t pc;
    std::uint32_t returns;  // so often the thread came back here
  };

  int calls_, blocks_;
  Call call_[kMaxCalls];
  Block block_[kMaxBlocks];
};

// The same for two lanes that are at the same instruction, called from the same places.
std::uint64_t call_path(const Caller& caller);
bool is_in_loop(const Iteration& iteration);
std::uint64_t mix(std::uint64_t hash, std::uint64_t value);

}  // namespace simt
