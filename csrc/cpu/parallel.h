// How kernels use threads without knowing whose: the caller lends a runner (in a torch build, torch's own pool, since a
// second OpenMP runtime would fight it for the cores).
#pragma once
#include <atomic>
#include <cstdint>

namespace abckd::cpu {

constexpr int64_t kSerialElements = 32768;  // less than this is done before a second thread wakes up

// Calls body(context) once on each of `threads` threads.
using RunThreads = void (*)(int threads, void (*body)(void*), void* context);

struct Threads {
  int count;
  RunThreads run;
};

// Calls task(i) for every i in [0, tasks), in any order on any thread; tasks are handed out one by one, because layers differ in
// cost. Results don't depend on the order as long as tasks write to places of their own.
template <typename Task>
void for_each_task(Threads threads, int64_t tasks, const Task& task) {
  struct Queue {
    std::atomic<int64_t> next{0};
    int64_t tasks;
    const Task* task;
  } queue;
  queue.tasks = tasks;
  queue.task = &task;
  const auto work = [](void* context) {
    auto& queue = *static_cast<Queue*>(context);
    for (int64_t i; (i = queue.next.fetch_add(1, std::memory_order_relaxed)) < queue.tasks;) (*queue.task)(i);
  };
  const int count = tasks < threads.count ? static_cast<int>(tasks) : threads.count;
  if (count <= 1) {
    work(&queue);
  } else {
    threads.run(count, work, &queue);
  }
}

}  // namespace abckd::cpu
