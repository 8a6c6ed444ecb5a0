#include "traffic.h"

#include <algorithm>
#include <array>
#include <vector>

#include "machine.h"

namespace simt {
namespace {

std::map<std::string, Counters> all_counters;

// On a GPU the lanes of a warp execute an instruction together; here they come one by one. The rule that brings their
// accesses together: accesses are one request if they are of the same instruction, called from the same places, in the same
// iterations of the loops around it (position.h), since all lanes of the warp that still ran last met at a barrier or a warp
// operation. If a lane comes there again, which takes a way that position.h did not follow, its k-th access belongs to the
// k-th request. Lanes that don't come are absent.
// Requests are put together when the lanes meet: which blocks are in a loop is known only when some lane has been through it.
struct Logged {
  std::uintptr_t address;
  std::size_t bytes;
  std::uint64_t path;
  std::uint32_t iterations_end;  // its iterations lie between those of the access before it and here
  Access access;
  int lane;
};

struct Request {
  std::uint64_t key;
  std::uint32_t slot;  // in the table, of the first request with this key
  std::uint32_t next;  // request with this key, or 0
  std::uint32_t lanes;
  Access access;
  std::size_t bytes;   // per lane
  std::array<std::uintptr_t, kWarp> addresses;  // of the lanes that came, in the order in which they came
};

struct WarpRequests {
  std::vector<Logged> log;
  std::vector<Iteration> iterations;

  std::vector<Request> requests{1};  // number 0 is none
  std::uint32_t open = 1;            // one behind the last
  std::vector<std::uint32_t> table = std::vector<std::uint32_t>(1024);  // key -> number of its first request, probed linearly

  std::uint32_t slot_of(std::uint64_t key) const {
    std::size_t slot = key % table.size();
    while (table[slot] && requests[table[slot]].key != key) slot = (slot + 1) % table.size();
    return static_cast<std::uint32_t>(slot);
  }

  void grow() {
    table.assign(2 * table.size(), 0);
    for (std::uint32_t number = open; --number;) {  // the first request of a key comes last
      Request& request = requests[number];
      request.slot = slot_of(request.key);
      table[request.slot] = number;
    }
  }

  Request& add(std::uint64_t key) {
    if (2 * open > table.size()) grow();
    if (open == requests.size()) requests.emplace_back();
    Request& request = requests[open++];
    request.key = key;
    request.next = request.lanes = 0;
    return request;
  }

  // The first request with this key that the lane is not yet in.
  Request& find(std::uint64_t key, std::uint32_t lane) {
    std::uint32_t slot = slot_of(key);
    std::uint32_t number = table[slot], last = 0;
    while (number && (requests[number].lanes & lane)) last = number, number = requests[number].next;
    if (number) return requests[number];
    Request& request = add(key);  // may move the slot
    number = open - 1;
    slot = slot_of(key);
    request.slot = slot;
    if (last) requests[last].next = number;
    else table[slot] = number;
    return request;
  }

  void clear() {
    for (std::uint32_t number = 1; number < open; ++number) table[requests[number].slot] = 0;
    open = 1;
    log.clear();
    iterations.clear();
  }
};

std::array<WarpRequests, kMaxThreads / kWarp> warps;

void count(Request& request) {
  Traffic& traffic = request.access == Access::load ? machine.counters->loads : machine.counters->stores;
  const auto begin = request.addresses.begin(), end = begin + __builtin_popcount(request.lanes);
  if (!std::is_sorted(begin, end)) std::sort(begin, end);
  std::uint64_t bytes = 0, sectors = 0;
  std::uintptr_t counted_to = 0, next_sector = 0;
  for (auto address = begin; address != end; ++address) {
    const std::uintptr_t stop = *address + request.bytes;
    if (stop > counted_to) bytes += stop - std::max(*address, counted_to);
    counted_to = std::max(counted_to, stop);
    const std::uintptr_t first = std::max(*address / 32, next_sector), last = (stop - 1) / 32;
    if (last >= first) sectors += last - first + 1;
    next_sector = std::max(next_sector, last + 1);
  }
  ++traffic.requests;
  traffic.bytes += bytes;
  if (request.bytes == 16) traffic.bytes_by_16 += bytes;
  traffic.sectors += sectors;
  traffic.ideal_sectors += (bytes + 31) / 32;
}

}  // namespace

const std::map<std::string, Counters>& counters() { return all_counters; }
void reset_counters() { all_counters.clear(); }
Counters& counters_of(const std::string& kernel) { return all_counters[kernel]; }

void start_requests() {  // a launch that failed leaves some open
  for (WarpRequests& warp : warps) warp.clear();
}

void log_access(std::uintptr_t address, std::size_t bytes, Access access, const Caller& caller) {
  const Thread& self = *machine.thread;
  WarpRequests& warp = warps[static_cast<std::size_t>(self.warp)];
  machine.positions[self.number].each_iteration([&](const Iteration& iteration) { warp.iterations.push_back(iteration); });
  const auto end = static_cast<std::uint32_t>(warp.iterations.size());
  warp.log.push_back({address, bytes, call_path(caller), end, access, self.lane});
}

void close_requests(int number) {
  WarpRequests& warp = warps[static_cast<std::size_t>(number)];
  std::uint32_t iteration = 0;
  for (const Logged& logged : warp.log) {
    // A call may load and store: that of a copy.
    std::uint64_t key = logged.path + (logged.access == Access::store);
    for (; iteration < logged.iterations_end; ++iteration) {
      const Iteration& of = warp.iterations[iteration];
      if (is_in_loop(of)) key = mix(mix(key, of.loop), of.number);
    }
    const std::uint32_t lane = 1u << logged.lane;
    Request& request = warp.find(key, lane);
    request.access = logged.access;
    request.bytes = logged.bytes;
    request.addresses[static_cast<std::size_t>(__builtin_popcount(request.lanes))] = logged.address;
    request.lanes |= lane;
  }
  for (std::uint32_t i = 1; i < warp.open; ++i) count(warp.requests[i]);
  warp.clear();
}

void close_requests() {
  for (int warp = 0; warp * kWarp < machine.thread_count; ++warp) close_requests(warp);
}

}  // namespace simt
