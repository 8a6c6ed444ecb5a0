#include "shared.h"

#include <new>
#include <string>
#include <sys/mman.h>
#include <vector>

#include "describe.h"
#include "machine.h"
#include "shadow.h"

namespace simt {
namespace {

// Each array lies in the middle of a slot of its own: an index that is wrong by up to 96 KB still belongs to its array.
constexpr std::size_t kSlotBytes = 256 << 10, kSlotStart = 96 << 10;
constexpr std::size_t kMaxArrays = 64;

struct SharedArray {
  const void* place;
  std::string name;
  std::uintptr_t begin;
  std::size_t bytes;
  std::vector<Shadow> shadows;
  std::vector<std::uint32_t> stored_by;  // first interval of the block that stored the byte last
};

std::vector<SharedArray> arrays;
std::size_t shared_bytes = 0;

std::uintptr_t reserve_arena() {
  void* memory = mmap(nullptr, kMaxArrays * kSlotBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return reinterpret_cast<std::uintptr_t>(memory);
}

const std::uintptr_t arena = reserve_arena();

// An array is aligned as its type asks for and no better: what nvcc makes of it is luck.
void* add_array(const char* name, const void* place, std::size_t bytes, std::size_t alignment) {
  if (arrays.size() == kMaxArrays) fail(nullptr, "more shared arrays than the emulator keeps");
  shared_bytes = (shared_bytes + alignment - 1) / alignment * alignment + bytes;
  if (shared_bytes > kMaxSharedBytes) {
    fail(nullptr, "too much shared memory: with '" + std::string(name) + "' it is " + byte_count(shared_bytes) + " of " +
                      std::to_string(kMaxSharedBytes));
  }
  const std::uintptr_t begin = arena + arrays.size() * kSlotBytes + kSlotStart + alignment;
  arrays.push_back({place, name, begin, bytes, std::vector<Shadow>(bytes), std::vector<std::uint32_t>(bytes)});
  return reinterpret_cast<void*>(begin);
}

}  // namespace

bool is_shared(std::uintptr_t address) { return address - arena < kMaxArrays * kSlotBytes; }

void judge_shared(std::uintptr_t address, std::size_t bytes, Access access, bool aligned, const void* pc) {
  const std::size_t slot = (address - arena) / kSlotBytes;
  if (slot >= arrays.size()) fail(pc, "out of bounds: " + describe(access, bytes) + " in no shared array");
  SharedArray& array = arrays[slot];
  const std::size_t offset = address - array.begin;
  const auto where = [&] { return range(address, bytes, array.begin, array.bytes, "shared array '" + array.name + "'"); };
  if (address < array.begin || offset > array.bytes || bytes > array.bytes - offset) {
    fail(pc, "out of bounds: " + describe(access, bytes) + ", " + where());
  }
  if (aligned && address % bytes) fail(pc, "misaligned: " + describe(access, bytes) + ", " + where());
  std::string other;
  for (std::size_t i = offset; i < offset + bytes; ++i) {
    if (access != Access::store && array.stored_by[i] != machine.block_start) {
      fail(pc, "uninitialised shared memory: " + describe(access, bytes) + ", " + where());
    }
    if (race(array.shadows[i], access, machine.block_start, other)) {
      fail(pc, "race on shared memory: " + describe(access, bytes) + ", " + where() + "; " + other);
    }
    if (access != Access::load) array.stored_by[i] = machine.block_start;
  }
  if (access == Access::load) ++machine.counters->shared_loads;
  if (access == Access::store) ++machine.counters->shared_stores;
}

void start_shared(std::size_t dynamic_bytes) {
  arrays.clear();
  shared_bytes = 0;
  if (dynamic_bytes) add_array("dynamic", nullptr, dynamic_bytes, 16);
}

void* shared_array(const char* name, const void* place, std::size_t bytes, std::size_t alignment) {
  const InRuntime guard;
  for (const SharedArray& array : arrays) {
    if (array.place == place) return reinterpret_cast<void*>(array.begin);
  }
  return add_array(name, place, bytes, alignment);
}

void* dynamic_shared_array() {
  const InRuntime guard;
  if (arrays.empty() || arrays[0].place) fail(nullptr, "dynamic shared memory, but the launch gives none");
  return reinterpret_cast<void*>(arrays[0].begin);
}

}  // namespace simt
