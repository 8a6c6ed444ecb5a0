// Runs launches: blocks one after another, the threads of a block as fibers, both in an order drawn from the seed.
#include <string_view>
#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "fibers.h"
#include "machine.h"
#include "names.h"
#include "scheduler.h"
#include "shadow.h"
#include "shared.h"
#include "traffic.h"

#include "../include/simt/errors.h"

// The built-in variables; language.h declares them constant.
uint3 thread_index __asm__("simt_thread_index");
uint3 block_index __asm__("simt_block_index");
uint3 block_size __asm__("simt_block_size");
uint3 grid_size __asm__("simt_grid_size");

namespace simt {

Machine machine;

namespace {

std::uint64_t seed = 1;
cudaError_t last_error = cudaSuccess;
std::vector<std::uint32_t> block_order, thread_order;
std::vector<std::pair<std::uint32_t, std::uint64_t>> blocks_run;  // first interval and number, in the order of time

struct Failure {
  bool happened = false;
  const void* pc = nullptr;
  std::string what;
} failure;

struct Random {  // splitmix64
  std::uint64_t state;
  std::uint64_t next() {
    std::uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  void shuffle(std::vector<std::uint32_t>& order) {
    for (std::size_t n = order.size(); n > 1; --n) std::swap(order[n - 1], order[(next() >> 32) * n >> 32]);
  }
} random_numbers;

uint3 index_of(std::uint64_t number, const dim3& size) {
  return {static_cast<unsigned>(number % size.x), static_cast<unsigned>(number / size.x % size.y),
          static_cast<unsigned>(number / size.x / size.y)};
}

// A fiber's body: thread after thread of block after block.
void run_threads() {
  for (;;) {
    Thread& self = *machine.thread;
    machine.positions[self.number].start();
    machine.launch.run(machine.launch.context);
    machine.in_kernel = false;
    self.state = State::finished;
    ++machine.finished;
    fiber(self.number).yield();
  }
}

void resume(Thread& thread) {
  machine.thread = &thread;
  machine.own_stack = reinterpret_cast<std::uintptr_t>(stack_of(thread.number));
  thread_index = thread.index;
  machine.in_kernel = true;
  fiber(thread.number).resume(run_threads);
  machine.in_kernel = false;
}

std::string state_of(const Thread& thread) {
  if (thread.state == State::finished) return thread_name(thread.number) + " has returned";
  if (thread.state == State::ready) return thread_name(thread.number) + " runs";
  return thread_name(thread.number) + " waits in " + describe(thread.operation);
}

// No thread can go on: says whose fault it is.
[[noreturn]] void report_standstill() {
  Thread* waiting = nullptr;
  std::string why;
  for (int i = 0; i < machine.thread_count; ++i) {
    Thread& thread = machine.threads[i];
    if (thread.state != State::at_meeting) continue;
    for (int lane = 0; lane < kWarp; ++lane) {
      const int other = thread.warp * kWarp + lane;
      if (!(thread.operation.mask >> lane & 1) || other >= machine.thread_count) continue;
      const Thread& missing = machine.threads[other];
      if (missing.state == State::at_meeting && same_meeting(missing.operation, thread.operation)) continue;
      // A lane that waits elsewhere may itself wait for lanes that don't come; one that can't is the better culprit.
      const bool final = missing.state != State::at_meeting;
      if (waiting && !final) continue;
      waiting = &thread;
      why = "divergent warp operation: " + describe(thread.operation) + " waits for lane " + std::to_string(lane) +
            ", but " + state_of(missing);
      if (final) break;
    }
  }
  if (!waiting) {
    const auto first = std::find_if(machine.threads, machine.threads + machine.thread_count,
                                    [](const Thread& thread) { return thread.state == State::at_barrier; });
    const auto other = std::find_if(machine.threads, machine.threads + machine.thread_count, [&](const Thread& thread) {
      return thread.state == State::finished || !same_meeting(thread.operation, first->operation);
    });
    waiting = first;
    why = "divergent barrier: " + describe(first->operation) + " waits for all threads, but " + state_of(*other);
  }
  machine.thread = waiting;
  failure = {true, nullptr, std::move(why)};
  throw Error("");
}

// If all threads are at the same barrier, they go on in a new interval.
bool release_barrier() {
  for (int i = 0; i < machine.thread_count; ++i) {
    const Thread& thread = machine.threads[i];
    if (thread.state != State::at_barrier || !same_meeting(thread.operation, machine.threads[0].operation)) return false;
  }
  for (int i = 0; i < machine.thread_count; ++i) machine.threads[i].state = State::ready;
  ++machine.interval;
  ++machine.counters->barriers;
  close_requests();
  return true;
}

void run_block(std::uint64_t number) {
  block_index = index_of(number, machine.launch.blocks);
  machine.block_start = ++machine.interval;
  machine.finished = 0;
  blocks_run.emplace_back(machine.interval, number);
  for (int i = 0; i < machine.thread_count; ++i) machine.threads[i].state = State::ready;
  while (machine.finished < machine.thread_count) {
    bool progress = false;
    random_numbers.shuffle(thread_order);
    for (const std::uint32_t i : thread_order) {
      if (machine.threads[i].state != State::ready) continue;
      progress = true;
      resume(machine.threads[i]);
      if (failure.happened) throw Error("");
    }
    if (!progress && !release_barrier()) report_standstill();
  }
  close_requests();
}

void run_blocks(const Launch& launch) {
  machine.launch = launch;
  machine.counters = &counters_of(kernel_name(launch.kernel, launch.text));
  machine.thread_count = static_cast<int>(launch.threads.x * launch.threads.y * launch.threads.z);
  machine.launch_start = machine.interval + 1;
  block_size = launch.threads;
  grid_size = launch.blocks;
  for (int i = 0; i < machine.thread_count; ++i) {
    Thread& thread = machine.threads[i];
    thread.number = i, thread.warp = i / kWarp, thread.lane = i % kWarp;
    thread.index = index_of(static_cast<std::uint64_t>(i), launch.threads);
  }
  const std::uint64_t blocks = std::uint64_t{launch.blocks.x} * launch.blocks.y * launch.blocks.z;
  random_numbers.state = seed;
  blocks_run.clear();
  thread_order.resize(static_cast<std::size_t>(machine.thread_count));
  std::iota(thread_order.begin(), thread_order.end(), 0);
  block_order.resize(blocks);
  std::iota(block_order.begin(), block_order.end(), 0);
  random_numbers.shuffle(block_order);
  start_shared(launch.shared_bytes);
  forget_atomics();
  start_requests();
  ++machine.counters->launches;
  for (const std::uint32_t number : block_order) run_block(number);
  machine.counters->blocks += blocks;
  machine.counters->threads += blocks * static_cast<std::uint64_t>(machine.thread_count);
}

struct {
  std::string file;
  int line = 0;
} left_out;

}  // namespace

void set_seed(std::uint64_t value) { seed = value; }

void leave_out_barrier(const char* end_of_file_name, int line) {
  left_out.file = end_of_file_name ? end_of_file_name : "";
  left_out.line = line;
}

bool is_left_out(Place place) {
  if (left_out.file.empty() || place.line != left_out.line) return false;
  const std::string_view file = place.file;
  return file.size() >= left_out.file.size() && file.substr(file.size() - left_out.file.size()) == left_out.file;
}

void sync_block(Place place) {
  const InRuntime guard;
  if (is_left_out(place)) return;
  machine.thread->operation = {"__syncthreads", place, 0, 0, -1};
  machine.thread->state = State::at_barrier;
  wait();
}

int lane() { return machine.thread->lane; }

void fail(const void* pc, std::string what) {
  failure.happened = true;
  failure.pc = pc;
  failure.what = std::move(what);
  fiber(machine.thread->number).leave();
}

void refuse(const char* kernel, const char* reason) { throw Error(std::string(kernel) + ": " + reason); }

void launch(const Launch& launch) {
  const dim3 &blocks = launch.blocks, &threads = launch.threads;
  const std::uint64_t per_block = std::uint64_t{threads.x} * threads.y * threads.z;
  if (std::exchange(machine.in_kernel, false)) fail(nullptr, "a kernel can't launch a kernel here");
  if (blocks.x > 0x7fffffffu || blocks.y > 0xffff || blocks.z > 0xffff || threads.z > 64 || per_block > kMaxThreads ||
      per_block == 0 || std::uint64_t{blocks.x} * blocks.y * blocks.z == 0) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  if (launch.shared_bytes > kMaxSharedBytes) {
    last_error = cudaErrorInvalidValue;
    return;
  }
  failure = {};
  try {
    run_blocks(launch);
  } catch (const Error&) {
    for (int i = 0; i < machine.thread_count; ++i) fiber(i).abandon();
    std::string message = kernel_name(launch.kernel, launch.text) + ": block " + coordinates(block_index) + ", " +
                          thread_name(machine.thread->number) + ": " + failure.what;
    if (failure.pc) message += " (" + source_line(failure.pc) + ")";
    throw Error(message);
  }
}

std::string coordinates(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string thread_name(int number) { return "thread " + coordinates(machine.threads[number].index); }

std::string block_of_interval(std::uint32_t interval) {
  const auto next = std::upper_bound(blocks_run.begin(), blocks_run.end(), interval,
                                     [](std::uint32_t value, const auto& block) { return value < block.first; });
  return "block " + coordinates(index_of(std::prev(next)->second, machine.launch.blocks));
}

std::string at(Place place) {
  const char* name = std::strrchr(place.file, '/');
  return std::string(name ? name + 1 : place.file) + ":" + std::to_string(place.line);
}

}  // namespace simt

cudaError_t cudaGetLastError() { return std::exchange(simt::last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return simt::last_error; }
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
  }
  return "unrecognized error code";
}
