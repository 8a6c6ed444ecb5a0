// Fibers: functions with stacks of their own that run until they yield.
#pragma once
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <ucontext.h>

namespace simt {

constexpr std::size_t kStackBytes = 128 << 10;
constexpr int kMaxFibers = 1024;

class Fiber {
 public:
  // Goes on with body() where it yielded; a fiber that is new, or was abandoned, starts body() afresh.
  void resume(void (*body)());
  // Called by a running body: back to resume().
  void yield();
  // Called by a running body that is not to go on: back to resume(), never to return.
  [[noreturn]] void leave();
  void abandon() { started_ = false; }

 private:
  ucontext_t fresh_;
  jmp_buf state_;
  bool started_ = false;
};

// Stack of fiber i: kStackBytes from here, a guard page below.
char* stack_of(int fiber);
// Which fiber's stack holds the address, or -1.
int stack_owner(const void* address);
Fiber& fiber(int number);

}  // namespace simt
