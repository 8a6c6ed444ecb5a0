#include "global.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <unordered_map>
#include <vector>

#include "describe.h"
#include "machine.h"
#include "shadow.h"

namespace simt {
namespace {

constexpr std::size_t kPageBytes = 4096;

struct Page {
  std::uint32_t launch_start;              // of the launch that the sectors are of
  std::uint64_t sectors[2][kPageBytes / 32 / 64];  // touched by loads, by stores
  Shadow* shadows;                         // one per byte, where there can be races
};

struct FreePage {
  void operator()(Page* page) const {
    std::free(page->shadows);
    delete page;
  }
};

std::vector<Buffer> buffers;
std::unordered_map<std::uintptr_t, std::unique_ptr<Page, FreePage>> pages;
std::size_t last_buffer = 0;
std::uintptr_t last_page_number = 0;
Page* last_page = nullptr;
int next_id = 0;

Page& page_of(std::uintptr_t number) {
  if (last_page && last_page_number == number) return *last_page;
  auto& slot = pages[number];
  if (!slot) slot.reset(new Page{});
  last_page_number = number;
  return *(last_page = slot.get());
}

void mark_what_can_race() {
  for (Buffer& buffer : buffers) {
    buffer.can_race = std::any_of(buffers.begin(), buffers.end(),
                                  [&](const Buffer& other) { return other.writable && other.overlaps(buffer); });
  }
}

}  // namespace

bool Buffer::contains(std::uintptr_t address, std::size_t count) const {
  return address >= begin && address - begin <= bytes && count <= bytes - (address - begin);
}

bool Buffer::overlaps(const Buffer& other) const {
  return begin < other.begin + other.bytes && other.begin < begin + bytes;
}

std::string Buffer::range(std::uintptr_t address, std::size_t count) const {
  return simt::range(address, count, begin, bytes, "'" + name + "'");
}

const Buffer* find_buffer(std::uintptr_t address, std::size_t bytes, Access access, const char*& wrong) {
  const auto serves = [&](const Buffer& buffer) {
    return buffer.contains(address, bytes) && (access == Access::load || buffer.writable);
  };
  wrong = nullptr;
  if (last_buffer < buffers.size() && serves(buffers[last_buffer])) return &buffers[last_buffer];
  const Buffer* nearest = nullptr;
  std::uintptr_t nearest_distance = ~std::uintptr_t{0};
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    if (serves(buffers[i])) {
      wrong = nullptr;
      last_buffer = i;
      return &buffers[i];
    }
    const Buffer& buffer = buffers[i];
    const bool contains = buffer.contains(address, bytes);
    const std::uintptr_t end = buffer.begin + buffer.bytes;
    const std::uintptr_t beyond = address < buffer.begin ? buffer.begin - address : address > end ? address - end : 0;
    const std::uintptr_t distance = contains ? 0 : 1 + beyond;
    if (distance < nearest_distance) nearest = &buffer, nearest_distance = distance;
    if (contains) wrong = "store to a read-only buffer";
  }
  if (!wrong) wrong = "out of bounds";
  return nearest_distance < (std::uintptr_t{1} << 30) ? nearest : nullptr;
}

void judge_global(const Buffer& buffer, std::uintptr_t address, std::size_t bytes, Access access, const void* pc) {
  for (std::uintptr_t next = address, end = address + bytes; next < end;) {
    Page& page = page_of(next / kPageBytes);
    const std::uintptr_t stop = std::min(end, (next / kPageBytes + 1) * kPageBytes);
    if (page.launch_start != machine.launch_start) {
      page.launch_start = machine.launch_start;
      std::fill_n(&page.sectors[0][0], sizeof page.sectors / sizeof(std::uint64_t), 0);
    }
    if (access != Access::atomic) {
      Traffic& traffic = access == Access::load ? machine.counters->loads : machine.counters->stores;
      for (std::uintptr_t sector = next / 32; sector <= (stop - 1) / 32; ++sector) {
        const std::size_t bit = sector % (kPageBytes / 32);
        std::uint64_t& word = page.sectors[access == Access::store][bit / 64];
        if (!(word >> bit % 64 & 1)) {
          word |= std::uint64_t{1} << bit % 64;
          traffic.unique_bytes += 32;
        }
      }
    }
    if (buffer.can_race) {
      if (!page.shadows) {
        page.shadows = static_cast<Shadow*>(std::calloc(kPageBytes, sizeof(Shadow)));
        if (!page.shadows) throw std::bad_alloc();
      }
      std::string other;
      for (std::uintptr_t byte = next; byte < stop; ++byte) {
        if (race(page.shadows[byte % kPageBytes], access, machine.launch_start, other)) {
          fail(pc, "race on global memory: " + describe(access, bytes) + ", " + buffer.range(address, bytes) + "; " +
                       other);
        }
      }
    }
    next = stop;
  }
}

int register_buffer(const char* name, const void* data, std::size_t bytes, bool writable) {
  buffers.push_back({next_id, name, reinterpret_cast<std::uintptr_t>(data), bytes, writable, writable});
  mark_what_can_race();
  return next_id++;
}

void unregister_buffer(int id) {
  buffers.erase(std::remove_if(buffers.begin(), buffers.end(), [id](const Buffer& buffer) { return buffer.id == id; }),
                buffers.end());
  mark_what_can_race();
  if (buffers.empty()) {
    pages.clear();
    last_page = nullptr;
  }
}

void Buffers::readable(std::string name, const void* data, std::size_t bytes) {
  registered_.push_back(register_buffer(name.c_str(), data, bytes, false));
}

void Buffers::writable(std::string name, void* data, std::size_t bytes) {
  registered_.push_back(register_buffer(name.c_str(), data, bytes, true));
}

Buffers::~Buffers() {
  for (const int id : registered_) unregister_buffer(id);
}

}  // namespace simt
