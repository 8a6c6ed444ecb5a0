// The buffers in global memory.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "memory.h"

namespace simt {

struct Buffer {
  int id;
  std::string name;
  std::uintptr_t begin;
  std::size_t bytes;
  bool writable;
  bool can_race;  // it, or a buffer that overlaps it, is writable

  bool contains(std::uintptr_t address, std::size_t count) const;
  bool overlaps(const Buffer& other) const;
  std::string range(std::uintptr_t address, std::size_t count) const;
};

// The buffer that allows the access. If there is none: what is wrong, and the buffer that contains the access or is nearest;
// null if that is far away.
const Buffer* find_buffer(std::uintptr_t address, std::size_t bytes, Access access, const char*& wrong);
void judge_global(const Buffer& buffer, std::uintptr_t address, std::size_t bytes, Access access, const void* pc);

}  // namespace simt
