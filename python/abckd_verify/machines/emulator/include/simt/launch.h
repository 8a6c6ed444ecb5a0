// ABCKD_LAUNCH: the kernel runs to its end before the next line does; what the emulator finds arrives as a simt::Error.
#pragma once
#include <tuple>
#include <type_traits>
#include <utility>

#include "errors.h"
#include "runtime.h"

namespace simt {

// Blocks or threads of a launch, from a dim3 or a number. Under nvcc a number beyond 32 bits is cut silently; here it isn't.
struct Extent {
  dim3 size;
  bool fits = true;
  Extent(dim3 size) : size(size) {}
  template <typename Number, typename = std::enable_if_t<std::is_integral_v<Number>>>
  Extent(Number number)
      : size(static_cast<unsigned>(number)),
        fits(number >= Number(0) && static_cast<std::uint64_t>(number) <= 0xffffffffu) {}
};

template <typename... Parameters>
struct Call {
  void (*kernel)(Parameters...);
  std::tuple<Parameters...> arguments;
  static void run(void* call) {
    auto* self = static_cast<Call*>(call);
    std::apply(self->kernel, self->arguments);
  }
};

template <typename... Parameters, typename... Arguments>
void launch(const char* text, void (*kernel)(Parameters...), Extent blocks, Extent threads, std::size_t shared_bytes,
            cudaStream_t, Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "the launch has not as many arguments as the kernel");
  if (!blocks.fits) refuse(text, "the number of blocks does not fit into 32 bits");
  if (!threads.fits) refuse(text, "the number of threads does not fit into 32 bits");
  Call<Parameters...> call{kernel, {static_cast<Parameters>(std::forward<Arguments>(arguments))...}};
  launch(Launch{reinterpret_cast<const void*>(kernel), text, blocks.size, threads.size, shared_bytes,
                &Call<Parameters...>::run, &call, sizeof call});
}

}  // namespace simt

#define ABCKD_LAUNCH(kernel, blocks, threads, shared_bytes, stream, ...) \
  ::simt::launch(#kernel, kernel, blocks, threads, shared_bytes, stream, ##__VA_ARGS__)
