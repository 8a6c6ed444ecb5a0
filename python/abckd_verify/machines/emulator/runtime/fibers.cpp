// makecontext starts a fiber, _setjmp and _longjmp switch: unlike swapcontext, they make no system call.
#undef _FORTIFY_SOURCE  // its longjmp refuses to change stacks
#include "fibers.h"

#include <new>
#include <sys/mman.h>
#include <unistd.h>

namespace simt {
namespace {

constexpr std::size_t kGuardBytes = 64 << 10;  // a page, or more, on every machine
constexpr std::size_t kSlotBytes = kGuardBytes + kStackBytes;

Fiber fibers[kMaxFibers];
jmp_buf resumer;

char* reserve_stacks() {
  void* memory = mmap(nullptr, kMaxFibers * kSlotBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  char* stacks = static_cast<char*>(memory);
  for (int i = 0; i < kMaxFibers; ++i) mprotect(stacks + i * kSlotBytes, kGuardBytes, PROT_NONE);
  return stacks;
}

char* stacks() {
  static char* const memory = reserve_stacks();
  return memory;
}

}  // namespace

Fiber& fiber(int number) { return fibers[number]; }

char* stack_of(int number) { return stacks() + number * kSlotBytes + kGuardBytes; }

int stack_owner(const void* address) {
  const std::size_t offset = reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(stacks());
  return offset < kMaxFibers * kSlotBytes ? static_cast<int>(offset / kSlotBytes) : -1;
}

__attribute__((noinline)) void Fiber::resume(void (*body)()) {
  if (_setjmp(resumer)) return;
  if (started_) _longjmp(state_, 1);
  getcontext(&fresh_);
  fresh_.uc_stack.ss_sp = stack_of(static_cast<int>(this - fibers));
  fresh_.uc_stack.ss_size = kStackBytes;
  fresh_.uc_link = nullptr;
  makecontext(&fresh_, body, 0);
  started_ = true;
  setcontext(&fresh_);
}

__attribute__((noinline)) void Fiber::yield() {
  if (!_setjmp(state_)) _longjmp(resumer, 1);
}

void Fiber::leave() {
  started_ = false;
  _longjmp(resumer, 1);
}

}  // namespace simt
