// The emulator as tests and bindings see it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace simt {

// What a launch did wrong: kernel, block, thread, what, which buffer and where, line of source.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The global memory that kernels may touch while this object lives, to the byte. The same memory may be named repeatedly.
class Buffers {
 public:
  Buffers() = default;
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  ~Buffers();
  void readable(std::string name, const void* data, std::size_t bytes);
  void writable(std::string name, void* data, std::size_t bytes);

 private:
  std::vector<int> registered_;
};

// The next launches run blocks and threads in another order. The same seed gives the same order.
void set_seed(std::uint64_t seed);

// The next launches run as if the barrier on that line, of a block or a warp, were not there; null: all are.
void leave_out_barrier(const char* end_of_file_name, int line);

// Loads or stores of global memory. A request is one access of a warp; sectors are 32 bytes.
struct Traffic {
  std::uint64_t requests, bytes;  // distinct bytes of each request
  std::uint64_t bytes_by_16;      // those of them that came by accesses of 16 bytes
  std::uint64_t sectors;          // sectors that the requests touched
  std::uint64_t ideal_sectors;    // sectors if the distinct bytes of each request lay side by side
  std::uint64_t unique_bytes;     // sectors that a launch touched at all, times 32: what a perfect cache would fetch
};

struct Counters {
  std::uint64_t launches, blocks, threads;
  Traffic loads, stores;
  std::uint64_t atomics, shared_loads, shared_stores;   // accesses of single threads
  std::uint64_t barriers;                               // of blocks
  std::uint64_t shuffles, votes, warp_syncs;            // of warps
};

// Per kernel, by its short name with template arguments, since the last reset.
const std::map<std::string, Counters>& counters();
void reset_counters();

// For functions that Python calls: the message of what `body` threw, or null.
const char* remember(std::string message);
template <typename Body>
const char* message_of(Body&& body) {
  try {
    std::forward<Body>(body)();
    return nullptr;
  } catch (const std::exception& error) {
    return remember(error.what());
  }
}

}  // namespace simt
