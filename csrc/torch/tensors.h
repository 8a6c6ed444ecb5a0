// Tensors to pointers: what the ops of every device share.
#pragma once
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <optional>
#include <tuple>
#include <vector>

#include "abckd/arguments.h"

namespace abckd {

using at::Tensor;
using OptionalTensors = c10::List<std::optional<Tensor>>;
using MaybeTensor = std::optional<Tensor>;

inline at::ScalarType accumulation_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

inline Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return Dtype::f32;
    case at::kDouble: return Dtype::f64;
    case at::kBFloat16: return Dtype::bf16;
    case at::kHalf: return Dtype::f16;
    default: TORCH_CHECK_TYPE(false, "expected float32, float64, bfloat16 or float16, got ", x.scalar_type());
  }
}

// Lies as [b, *spatial, c], and not at the same time as [b, c, *spatial].
inline bool is_channels_last(const Tensor& x) { return !x.is_contiguous() && x.movedim(1, -1).is_contiguous(); }

inline Tensor dense(const Tensor& x) { return is_channels_last(x) ? x : x.contiguous(); }

// `x` in the memory order that `like` has.
inline Tensor dense_as(const Tensor& x, const Tensor& like) {
  return is_channels_last(like) ? x.movedim(1, -1).contiguous().movedim(-1, 1) : x.contiguous();
}

// Asks for 2 MB pages below a large result on the CPU. malloc hands large memory back to the system and gets it anew,
// and then each page costs a fault when it is first written: at 4 KB these cost more than the gradient itself. Only
// advice: what torch would get without it is what it gets where the system has none. Pages that `x` covers in part stay
// as they are.
inline void advise_huge_pages(const Tensor& x) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = uintptr_t{1} << 21;
  if (!x.is_cpu()) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(x.const_data_ptr());
  const uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (address + x.nbytes()) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// For results that are as large as features.
inline Tensor empty_as(const Tensor& x) {
  const Tensor result = at::empty_strided(x.sizes(), x.strides(), x.options());
  advise_huge_pages(result);
  return result;
}

inline void check_shape(const char* name, const Tensor& x, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(x.sizes() == shape, name, ": expected shape ", shape, ", got ", x.sizes());
}

inline void check_device(const char* name, const Tensor& x, at::Device device) {
  TORCH_CHECK_VALUE(x.device() == device, name, ": expected a tensor on ", device, ", got ", x.device());
}

// Makes the device of `x` the current one, as launches and memory on it need.
struct OnDeviceOf {
  c10::OptionalDeviceGuard guard;

  explicit OnDeviceOf(const Tensor& x) {
    if (!x.is_cpu()) guard.reset_device(x.device());
  }
};

// Keeps the int64 copy of `lengths` alive as long as kernels read it.
struct Lengths {
  Tensor values;
  Padding padding;

  Lengths(const MaybeTensor& lengths, int64_t padded_length, int64_t batch, at::Device device)
      : padding{nullptr, padded_length} {
    if (!lengths.has_value()) return;
    TORCH_CHECK_VALUE(lengths->dim() == 1 && lengths->size(0) == batch, "lengths: expected shape (", batch, "), got ",
                      lengths->sizes());
    check_device("lengths", *lengths, device);
    TORCH_CHECK_VALUE(padded_length > 0, "padded_length: expected a positive number, got ", padded_length);
    values = lengths->to(at::kLong).contiguous();
    padding.lengths = values.const_data_ptr<int64_t>();
  }
};

// Scratch memory of a launch.
inline Tensor workspace(int64_t bytes, const Tensor& like) {
  return at::empty({bytes}, like.options().dtype(at::kByte));
}

}  // namespace abckd
