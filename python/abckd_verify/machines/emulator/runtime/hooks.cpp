// g++ -fsanitize=thread calls these before every access of memory that it can't prove local, parts of -fsanitize=undefined
// when something overflows. They are this emulator's: no sanitizer's library is linked. Host code in a .cu file calls them
// too, and is none of our business. g++ believes that they never throw; fail() leaves the fiber without unwinding.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "fibers.h"
#include "machine.h"
#include "memory.h"
#include "position.h"

namespace simt {
namespace {

inline bool is_local(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) - machine.own_stack < kStackBytes;
}

inline void touch(const void* address, std::size_t bytes, Access access, bool aligned, Caller caller) {
  if (!machine.in_kernel || is_local(address)) return;
  const InRuntime guard;
  judge(address, bytes, access, aligned, caller);
}

// Where and what g++ found; the beginning of every report of -fsanitize=undefined.
struct Report {
  const char* file;
  unsigned line, column;
};

void undefined(const Report* report, const char* what) {
  const bool in_kernel = std::exchange(machine.in_kernel, false);
  const std::string text = std::string("undefined: ") + what + " at " + at({report->file, static_cast<int>(report->line)});
  if (in_kernel) fail(nullptr, text);
  std::fprintf(stderr, "host code of a kernel's file: %s\n", text.c_str());
  std::abort();
}

}  // namespace

void load(const void* from, void* to, std::size_t bytes) {
  touch(from, bytes, Access::load, true, SIMT_CALLER);
  std::memcpy(to, from, bytes);
}

void store(void* to, const void* from, std::size_t bytes) {
  touch(to, bytes, Access::store, true, SIMT_CALLER);
  std::memcpy(to, from, bytes);
}

void atomic_load(const void* from, void* to, std::size_t bytes) {
  touch(from, bytes, Access::atomic, true, SIMT_CALLER);
  std::memcpy(to, from, bytes);
}

void atomic_store(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }

}  // namespace simt

using simt::Access;
using simt::machine;
using simt::touch;

extern "C" {

#define SIMT_HOOKS(bytes)                                                                               \
  void __tsan_read##bytes(void* address) { touch(address, bytes, Access::load, true, SIMT_CALLER); }         \
  void __tsan_write##bytes(void* address) { touch(address, bytes, Access::store, true, SIMT_CALLER); }       \
  void __tsan_volatile_read##bytes(void* address) { touch(address, bytes, Access::load, true, SIMT_CALLER); } \
  void __tsan_volatile_write##bytes(void* address) { touch(address, bytes, Access::store, true, SIMT_CALLER); }
// The type promises no alignment to its size: on the GPU it is several accesses.
#define SIMT_UNALIGNED_HOOKS(bytes)                                                                        \
  void __tsan_unaligned_read##bytes(void* address) { touch(address, bytes, Access::load, false, SIMT_CALLER); } \
  void __tsan_unaligned_write##bytes(void* address) { touch(address, bytes, Access::store, false, SIMT_CALLER); }

SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)
SIMT_UNALIGNED_HOOKS(2)
SIMT_UNALIGNED_HOOKS(4)
SIMT_UNALIGNED_HOOKS(8)
SIMT_UNALIGNED_HOOKS(16)

void __tsan_read_range(void* address, std::size_t bytes) { touch(address, bytes, Access::load, false, SIMT_CALLER); }
void __tsan_write_range(void* address, std::size_t bytes) { touch(address, bytes, Access::store, false, SIMT_CALLER); }
void __tsan_vptr_update(void** address, void*) { touch(address, sizeof(void*), Access::store, true, SIMT_CALLER); }
void __tsan_vptr_read(void** address) { touch(address, sizeof(void*), Access::load, true, SIMT_CALLER); }
// -fsanitize-coverage=trace-pc: at the begin of every basic block.
void __sanitizer_cov_trace_pc() {
  if (!machine.in_kernel) return;
  const simt::InRuntime guard;
  machine.positions[machine.thread->number].enter_block(SIMT_CALLER);
}

void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

// std::atomic and static guards of host code. Device code uses atomics.h.
#define SIMT_HOST_ATOMICS(bits, type)                                                                              \
  type __tsan_atomic##bits##_load(const volatile type* a, int) { return __atomic_load_n(a, __ATOMIC_SEQ_CST); }     \
  void __tsan_atomic##bits##_store(volatile type* a, type v, int) { __atomic_store_n(a, v, __ATOMIC_SEQ_CST); }     \
  type __tsan_atomic##bits##_exchange(volatile type* a, type v, int) { return __atomic_exchange_n(a, v, __ATOMIC_SEQ_CST); } \
  type __tsan_atomic##bits##_fetch_add(volatile type* a, type v, int) { return __atomic_fetch_add(a, v, __ATOMIC_SEQ_CST); } \
  type __tsan_atomic##bits##_fetch_sub(volatile type* a, type v, int) { return __atomic_fetch_sub(a, v, __ATOMIC_SEQ_CST); } \
  bool __tsan_atomic##bits##_compare_exchange_strong(volatile type* a, type* expected, type v, int, int) {          \
    return __atomic_compare_exchange_n(a, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                 \
  }
SIMT_HOST_ATOMICS(8, unsigned char)
SIMT_HOST_ATOMICS(32, std::uint32_t)
SIMT_HOST_ATOMICS(64, std::uint64_t)

// simt.build() gives the kernels' object files these names in place of the C library's.
void* simt_memcpy(void* to, const void* from, std::size_t bytes) {
  touch(from, bytes, Access::load, false, SIMT_CALLER);
  touch(to, bytes, Access::store, false, SIMT_CALLER);
  return std::memcpy(to, from, bytes);
}
void* simt_memmove(void* to, const void* from, std::size_t bytes) {
  touch(from, bytes, Access::load, false, SIMT_CALLER);
  touch(to, bytes, Access::store, false, SIMT_CALLER);
  return std::memmove(to, from, bytes);
}
void* simt_memset(void* to, int value, std::size_t bytes) {
  touch(to, bytes, Access::store, false, SIMT_CALLER);
  return std::memset(to, value, bytes);
}

void __ubsan_handle_out_of_bounds(simt::Report* report, void*) {
  simt::undefined(report, "index beyond the bounds of its array type");
}
#define SIMT_ARITHMETIC_HOOK(handler, what) \
  void __ubsan_handle_##handler(simt::Report* report, void*, void*) { simt::undefined(report, what); }
SIMT_ARITHMETIC_HOOK(add_overflow, "overflow of a signed sum")
SIMT_ARITHMETIC_HOOK(sub_overflow, "overflow of a signed difference")
SIMT_ARITHMETIC_HOOK(mul_overflow, "overflow of a signed product")
SIMT_ARITHMETIC_HOOK(divrem_overflow, "division by zero, or overflow of a signed quotient")
SIMT_ARITHMETIC_HOOK(shift_out_of_bounds, "shift by a number of bits that the type does not have")
void __ubsan_handle_negate_overflow(simt::Report* report, void*) { simt::undefined(report, "overflow of a negated number"); }

}  // extern "C"
