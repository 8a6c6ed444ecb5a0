// From a dtype that is known at run time to the code for it.
namespace abckd::cpu::ABCKD_ISA {

// Calls function(Storage<D>{}) with the D that `dtype` is.
template <typename Function>
inline void with_storage(Dtype dtype, const Function& function) {
  switch (dtype) {
    case Dtype::f32: return function(Storage<Dtype::f32>{});
    case Dtype::f64: return function(Storage<Dtype::f64>{});
    case Dtype::bf16: return function(Storage<Dtype::bf16>{});
    case Dtype::f16: return function(Storage<Dtype::f16>{});
  }
  throw std::invalid_argument("abckd_kernels: no CPU kernel knows this dtype");
}

}  // namespace abckd::cpu::ABCKD_ISA
