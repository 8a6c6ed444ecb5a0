#include "memory.h"

#include <link.h>

#include "describe.h"
#include "fibers.h"
#include "global.h"
#include "machine.h"
#include "shared.h"
#include "traffic.h"

namespace simt {
namespace {

struct Range {
  std::uintptr_t begin, end;
};

// Constants: segments that are mapped without permission to write.
bool in_read_only_data(std::uintptr_t address, std::size_t bytes) {
  static Range last{0, 0};
  struct Search {
    Range wanted, found;
  } search{{address, address + bytes}, {0, 0}};
  if (address >= last.begin && address + bytes <= last.end) return true;
  const bool found = dl_iterate_phdr(
      [](dl_phdr_info* object, std::size_t, void* data) {
        auto& [wanted, found] = *static_cast<Search*>(data);
        for (int i = 0; i < object->dlpi_phnum; ++i) {
          const auto& segment = object->dlpi_phdr[i];
          const bool constant = (segment.p_type == PT_LOAD && !(segment.p_flags & PF_W)) || segment.p_type == PT_GNU_RELRO;
          found = {object->dlpi_addr + segment.p_vaddr, object->dlpi_addr + segment.p_vaddr + segment.p_memsz};
          if (constant && wanted.begin >= found.begin && wanted.end <= found.end) return 1;
        }
        return 0;
      },
      &search);
  if (found) last = search.found;
  return found;
}

[[noreturn]] void report_outside(std::uintptr_t address, std::size_t bytes, Access access, const Buffer* nearest,
                                 const char* wrong, const void* pc) {
  const int owner = stack_owner(reinterpret_cast<void*>(address));
  const std::string what = std::string(wrong) + ": " + describe(access, bytes);
  if (owner >= 0) fail(pc, what + " in the local memory of " + thread_name(owner));
  if (address < 4096) fail(pc, what + " at address " + std::to_string(address) + ", a null pointer");
  if (!nearest) fail(pc, what + ", far from every buffer");
  fail(pc, what + ", " + nearest->range(address, bytes));
}

}  // namespace

void judge(const void* pointer, std::size_t bytes, Access access, bool aligned, const Caller& caller) {
  const void* const pc = caller.pc;
  if (bytes == 0) return;
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  if (is_shared(address)) {
    judge_shared(address, bytes, access, aligned, pc);
    return;
  }
  const char* wrong;
  const Buffer* buffer = find_buffer(address, bytes, access, wrong);
  if (wrong) {
    const std::uintptr_t parameters = reinterpret_cast<std::uintptr_t>(machine.launch.context);
    const bool constant = address - parameters < machine.launch.context_bytes || in_read_only_data(address, bytes);
    if (access == Access::load && constant) return;
    report_outside(address, bytes, access, buffer, wrong, pc);
  }
  if (aligned && address % bytes) {
    fail(pc, "misaligned: " + describe(access, bytes) + ", " + buffer->range(address, bytes));
  }
  judge_global(*buffer, address, bytes, access, pc);
  if (access == Access::atomic) ++machine.counters->atomics;
  else log_access(address, bytes, access, caller);
}

}  // namespace simt
