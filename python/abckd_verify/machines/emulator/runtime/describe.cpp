#include "describe.h"

namespace simt {

std::string byte_count(std::size_t bytes) { return std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes"); }

std::string describe(Access access, std::size_t bytes) {
  const char* const name = access == Access::load ? "load" : access == Access::store ? "store" : "atomic";
  return name + (" of " + byte_count(bytes));
}

std::string range(std::uintptr_t address, std::size_t bytes, std::uintptr_t begin, std::size_t size, const std::string& of) {
  const auto first = static_cast<std::ptrdiff_t>(address - begin);
  const std::string last = bytes > 1 ? ".." + std::to_string(first + static_cast<std::ptrdiff_t>(bytes) - 1) : "";
  return (bytes > 1 ? "bytes " : "byte ") + std::to_string(first) + last + " of " + of + ", which has " +
         std::to_string(size);
}

}  // namespace simt
