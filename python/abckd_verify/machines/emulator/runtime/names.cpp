#include "names.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cxxabi.h>
#include <dlfcn.h>
#include <map>

namespace simt {
namespace {

// From "void a::b::kernel<c::D, 4>(float*)": what stands outside of <> behind the last space or :: and before the "(".
std::string shorten(const std::string& name) {
  const std::string anonymous = "(anonymous namespace)";
  std::size_t begin = 0;
  int depth = 0;
  for (std::size_t i = 0; i < name.size(); ++i) {
    if (depth == 0 && name.compare(i, anonymous.size(), anonymous) == 0) {
      i += anonymous.size() - 1;
      continue;
    }
    const char c = name[i];
    if (c == '<') ++depth;
    if (c == '>') --depth;
    if (depth) continue;
    if (c == ' ' || c == ':') begin = i + 1;
    if (c == '(') return name.substr(begin, i - begin);
  }
  return name.substr(begin);
}

std::string look_up_line(const void* pc) {
  const std::string unknown = "unknown line";
  Dl_info info;
  if (!dladdr(pc, &info)) return unknown;
  char command[4096];
  std::snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
                static_cast<std::size_t>(static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase)) - 1);
  FILE* lines = popen(command, "r");
  if (!lines) return unknown;
  std::string answer = unknown;
  char line[4096];
  while (std::fgets(line, sizeof line, lines)) {  // innermost function first
    const std::string text = line;
    if (text.find("/simt/include/") != std::string::npos || text[0] == '?') continue;
    const std::size_t name = text.rfind('/') + 1;
    answer = text.substr(name, text.find_first_of(" \n", name) - name);
    break;
  }
  pclose(lines);
  return answer;
}

}  // namespace

std::string kernel_name(const void* kernel, const char* text) {
  static std::map<const void*, std::string> known;
  const auto found = known.find(kernel);
  if (found != known.end()) return found->second;
  Dl_info info;
  std::string name = text;
  if (dladdr(kernel, &info) && info.dli_sname && info.dli_saddr == kernel) {
    if (char* demangled = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, nullptr)) {
      name = shorten(demangled);
      std::free(demangled);
    }
  }
  return known[kernel] = name;
}

std::string source_line(const void* pc) {
  static std::map<const void*, std::string> known;
  const auto found = known.find(pc);
  return found != known.end() ? found->second : known[pc] = look_up_line(pc);
}

}  // namespace simt
