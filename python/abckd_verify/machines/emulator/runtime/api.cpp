// What ../__init__.py calls.
#include "../include/simt.h"
#include "memory.h"

namespace simt {
namespace {

std::string remembered;

void add(std::string& json, const std::string& name, std::uint64_t value) {
  json += "\"" + name + "\":" + std::to_string(value) + ",";
}

void add(std::string& json, const std::string& what, const Traffic& traffic) {
  add(json, what + "_requests", traffic.requests);
  add(json, what + "_bytes", traffic.bytes);
  add(json, what + "_bytes_by_16", traffic.bytes_by_16);
  add(json, what + "_sectors", traffic.sectors);
  add(json, "ideal_" + what + "_sectors", traffic.ideal_sectors);
  add(json, "unique_" + what + "_bytes", traffic.unique_bytes);
}

}  // namespace

const char* remember(std::string message) {
  remembered = std::move(message);
  return remembered.c_str();
}

}  // namespace simt

extern "C" {

void simt_set_seed(std::uint64_t seed) { simt::set_seed(seed); }
void simt_leave_out_barrier(const char* end_of_file_name, int line) { simt::leave_out_barrier(end_of_file_name, line); }
void simt_reset_counters() { simt::reset_counters(); }
int simt_register_buffer(const char* name, void* data, std::size_t bytes, bool writable) {
  return simt::register_buffer(name, data, bytes, writable);
}
void simt_unregister_buffer(int id) { simt::unregister_buffer(id); }

// {"kernel": {"launches": 1, ...}, ...}
const char* simt_counters() {
  std::string json = "{";
  for (const auto& [kernel, c] : simt::counters()) {
    json += "\"" + kernel + "\":{";
    simt::add(json, "launches", c.launches);
    simt::add(json, "blocks", c.blocks);
    simt::add(json, "threads", c.threads);
    simt::add(json, "load", c.loads);
    simt::add(json, "store", c.stores);
    simt::add(json, "requests", c.loads.requests + c.stores.requests);
    simt::add(json, "sectors", c.loads.sectors + c.stores.sectors);
    simt::add(json, "ideal_sectors", c.loads.ideal_sectors + c.stores.ideal_sectors);
    simt::add(json, "atomics", c.atomics);
    simt::add(json, "shared_loads", c.shared_loads);
    simt::add(json, "shared_stores", c.shared_stores);
    simt::add(json, "barriers", c.barriers);
    simt::add(json, "shuffles", c.shuffles);
    simt::add(json, "votes", c.votes);
    simt::add(json, "warp_syncs", c.warp_syncs);
    json.back() = '}';
    json += ',';
  }
  if (json.size() > 1) json.pop_back();
  return simt::remember(json + "}");
}

}  // extern "C"
