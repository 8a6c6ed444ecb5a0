#include "autograd.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace abckd {
namespace {

using at::Tensor;
using c10::IValue;
using torch::autograd::AutogradContext;
using torch::autograd::edge_list;
using torch::autograd::variable_list;
using torch::jit::Stack;

// A dispatcher op with one overload per backend; the backend is chosen at each call.
class Kernel {
 public:
  Kernel(std::string name, Choose choose) : name_(std::move(name)), choose_(std::move(choose)) {}

  const c10::FunctionSchema& schema() const { return overload("").schema(); }

  // Replaces the arguments on the stack by the results.
  void call(Stack& stack, c10::DeviceType device) const {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    overload(choose_(name_, device)).callBoxed(stack);
  }

 private:
  c10::OperatorHandle overload(const std::string& backend) const {
    return c10::Dispatcher::singleton().findSchemaOrThrow(("abckd::" + name_).c_str(), backend.c_str());
  }

  std::string name_;
  Choose choose_;
};

size_t count_tensors(const IValue& value) {
  if (value.isTensorList()) return value.toTensorList().size();
  return value.isTensor() && value.toTensor().defined() ? 1 : 0;
}

void append_tensors(const IValue& value, variable_list& tensors) {
  if (value.isTensorList()) {
    for (const Tensor& x : value.toTensorVector()) tensors.push_back(x);
  } else if (value.isTensor() && value.toTensor().defined()) {
    tensors.push_back(value.toTensor());
  }
}

// An attempt to differentiate a gradient again says so. The node leads to whatever the gradient depends on, so that no
// derivative of it passes by in silence.
struct Refuse : torch::autograd::Node {
  using Node::Node;
  std::string name() const override { return "SecondDerivativeOfAbckd"; }
  variable_list apply(variable_list&&) override {
    TORCH_CHECK(false, "second derivatives of abckd_kernels' ops don't exist");
  }
};

// torch 2.11 shares nodes by std::shared_ptr, later ones by c10::intrusive_ptr.
template <typename Pointer>
Pointer make_refusal(edge_list edges) {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>) {
    return std::make_shared<Refuse>(std::move(edges));
  } else {
    return c10::make_intrusive<Refuse>(std::move(edges));
  }
}

void refuse_derivatives(const Tensor& gradient, const edge_list& edges) {
  using Pointer = decltype(torch::autograd::Edge::function);
  torch::autograd::set_history(gradient, make_refusal<Pointer>(edges));
}

// Where an argument of a kernel comes from.
struct Source {
  enum Kind { kArgument, kResult, kGradient, kSizes, kNeeded, kGradients } kind;
  size_t index;  // of an argument of the op, of a result of forward, or of a result of the op
};

class Contract {
 public:
  Contract(const std::string& op, const Choose& choose);

  // The op: arguments on the stack become results.
  void operator()(const c10::OperatorHandle&, Stack* stack) const;

  Kernel forward, backward;
  std::vector<Source> forward_arguments, backward_arguments;
  std::vector<std::string> backward_types;
  std::vector<Source> results;                // of the op: arguments that pass through, then results of forward
  std::vector<size_t> differentiated;         // the op's arguments of which backward gives the gradients
  std::optional<size_t> passing;              // the argument that passes through
  size_t arguments = 0;
  bool materialize = true;                    // gradients that don't arrive are zeros, unless their types are optional
};

// One call of an op, and what its backward needs but tensors.
struct State : torch::CustomClassHolder {
  const Contract& contract;
  Stack arguments;                    // tensors among them only until forward has run
  std::vector<size_t> offsets;        // of each argument's tensors among all that the op was given
  std::vector<size_t> result_counts;  // tensors in each result of the op
  std::vector<bool> result_is_list;
  Stack kept;                         // per argument of backward: what is no tensor; of tensors, how many are saved
  edge_list edges;                    // to whatever the gradients depend on
  c10::DeviceType device;

  State(const Contract& contract, Stack arguments, c10::DeviceType device)
      : contract(contract), arguments(std::move(arguments)), device(device) {
    size_t offset = 0;
    for (const IValue& value : this->arguments) {
      offsets.push_back(offset);
      offset += count_tensors(value);
    }
    offsets.push_back(offset);
  }

  size_t tensors_of(size_t argument) const { return offsets[argument + 1] - offsets[argument]; }

  // Runs forward; its results.
  Stack run(bool gradients) const {
    Stack stack;
    for (const Source& source : contract.forward_arguments) {
      stack.push_back(source.kind == Source::kGradients ? IValue(gradients) : arguments[source.index]);
    }
    contract.forward.call(stack, device);
    return stack;
  }

  const IValue& result(size_t index, const Stack& fresh) const {
    const Source& source = contract.results[index];
    return source.kind == Source::kArgument ? arguments[source.index] : fresh[source.index];
  }
};

struct Derived : torch::autograd::Function<Derived> {
  static variable_list forward(AutogradContext* context, at::TensorList inputs,
                               const c10::intrusive_ptr<State>& state) {
    const Contract& contract = state->contract;
    const Stack fresh = state->run(true);
    variable_list outputs, saved;
    for (size_t i = 0; i < contract.results.size(); ++i) {
      const IValue& value = state->result(i, fresh);
      state->result_is_list.push_back(value.isTensorList());
      state->result_counts.push_back(count_tensors(value));
      append_tensors(value, outputs);
    }
    for (const Source& source : contract.backward_arguments) {
      state->kept.push_back(keep(*state, source, fresh, saved));
    }
    for (const Tensor& x : inputs) {
      if (x.requires_grad()) state->edges.push_back(torch::autograd::impl::gradient_edge(x));
    }
    state->arguments.clear();
    context->set_materialize_grads(contract.materialize);
    context->save_for_backward(std::move(saved));
    context->saved_data["state"] = IValue::make_capsule(state);
    return outputs;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto holder = context->saved_data["state"].toCapsule();
    const State& state = static_cast<const State&>(*holder);
    variable_list results;
    {
      const at::NoGradGuard no_grad;
      results = first_derivative(context, state, grads);
    }
    results.emplace_back();  // of the state
    if (!at::GradMode::is_enabled()) return results;
    edge_list edges = state.edges;
    for (const Tensor& grad : grads) {
      if (grad.defined() && grad.requires_grad()) edges.push_back(torch::autograd::impl::gradient_edge(grad));
    }
    for (const Tensor& result : results) {
      const bool passes =
          std::any_of(grads.begin(), grads.end(), [&](const Tensor& grad) { return grad.is_same(result); });
      if (!passes) refuse_derivatives(result, edges);
    }
    return results;
  }

 private:
  // What backward will need of one of its arguments; tensors go to `saved`.
  static IValue keep(const State& state, const Source& source, const Stack& fresh, variable_list& saved) {
    const Contract& contract = state.contract;
    if (source.kind == Source::kGradient || source.kind == Source::kNeeded) return {};
    const IValue& value = source.kind == Source::kResult ? fresh[source.index] : state.arguments[source.index];
    if (source.kind == Source::kSizes) {
      std::vector<c10::SymInt> sizes;
      for (const Tensor& x : value.toTensorVector()) {
        for (const c10::SymInt& size : x.sym_sizes().slice(1)) sizes.push_back(size);
      }
      return sizes;
    }
    if (value.isTensorList()) {
      // Of a list that is differentiated, backward reads what gets a gradient; a teacher's features are not kept.
      const auto& wanted = contract.differentiated;
      const bool some = source.kind == Source::kArgument &&
                        std::find(wanted.begin(), wanted.end(), source.index) != wanted.end();
      const auto tensors = value.toTensorVector();
      for (const Tensor& x : tensors) saved.push_back(some && !x.requires_grad() ? Tensor() : x);
      return static_cast<int64_t>(tensors.size());
    }
    if (value.isTensor()) {
      saved.push_back(value.toTensor());
      return int64_t{1};
    }
    return value;
  }

  static variable_list first_derivative(AutogradContext* context, const State& state, const variable_list& grads) {
    const Contract& contract = state.contract;
    const variable_list saved = context->get_saved_variables();
    variable_list results(state.offsets.back());
    const auto needs = [&](size_t tensor) { return context->needs_input_grad(tensor); };
    if (std::none_of(grads.begin(), grads.end(), [](const Tensor& grad) { return grad.defined(); })) return results;

    std::vector<size_t> grad_offsets{0};
    for (const size_t count : state.result_counts) grad_offsets.push_back(grad_offsets.back() + count);
    const auto grad_of = [&](size_t result, size_t item) {
      return item < state.result_counts[result] ? grads[grad_offsets[result] + item] : Tensor();
    };
    // Of what passes through, backward is called for the items that another gradient than their own reaches.
    std::vector<size_t> reached;
    if (contract.passing) {
      const size_t offset = state.offsets[*contract.passing];
      for (size_t item = 0; item < state.tensors_of(*contract.passing); ++item) {
        if (!needs(offset + item)) continue;
        bool alone = true;
        for (size_t result = 1; result < contract.results.size(); ++result) alone &= !grad_of(result, item).defined();
        alone ? void(results[offset + item] = grad_of(0, item)) : reached.push_back(item);
      }
      if (reached.empty()) return results;
    }
    const auto items_of = [&](size_t count) {
      if (contract.passing) return reached;
      std::vector<size_t> all(count);
      for (size_t i = 0; i < count; ++i) all[i] = i;
      return all;
    };

    Stack stack;
    auto next = saved.begin();
    for (size_t i = 0; i < contract.backward_arguments.size(); ++i) {
      const Source& source = contract.backward_arguments[i];
      const IValue& kept = state.kept[i];
      const std::string& type = contract.backward_types[i];
      if (source.kind == Source::kNeeded) {
        c10::List<bool> needed;
        for (const size_t argument : contract.differentiated) {
          bool any = false;
          for (size_t k = state.offsets[argument]; k < state.offsets[argument + 1]; ++k) any |= needs(k);
          needed.push_back(any);
        }
        stack.emplace_back(std::move(needed));
      } else if (source.kind == Source::kGradient) {
        if (!state.result_is_list[source.index]) {
          const Tensor grad = grad_of(source.index, 0);
          stack.push_back(grad.defined() ? IValue(grad) : IValue());
        } else {
          c10::List<std::optional<Tensor>> list;
          for (const size_t item : items_of(state.result_counts[source.index])) {
            const Tensor grad = grad_of(source.index, item);
            list.push_back(grad.defined() ? std::optional<Tensor>(grad) : std::nullopt);
          }
          stack.emplace_back(std::move(list));
        }
      } else if (source.kind != Source::kSizes && type == "Tensor[]") {
        const size_t count = kept.toInt();
        c10::List<Tensor> list;
        const bool passes = contract.passing && source.kind == Source::kArgument && source.index == *contract.passing;
        if (passes) {
          for (const size_t item : reached) list.push_back(next[item]);
        } else {
          for (size_t item = 0; item < count; ++item) list.push_back(next[item]);
        }
        next += count;
        stack.emplace_back(std::move(list));
      } else if ((type == "Tensor" || type == "Tensor?") && !kept.isNone()) {
        stack.emplace_back(*next++);
      } else {
        stack.push_back(kept);
      }
    }
    contract.backward.call(stack, state.device);

    for (size_t i = 0; i < contract.differentiated.size(); ++i) {
      const size_t argument = contract.differentiated[i], offset = state.offsets[argument];
      variable_list fresh;
      append_tensors(stack[i], fresh);
      const auto items = items_of(fresh.size());
      for (size_t k = 0; k < std::min(items.size(), state.tensors_of(argument)); ++k) {
        if (needs(offset + items[k])) results[offset + items[k]] = fresh[k];
      }
    }
    return results;
  }
};

Contract::Contract(const std::string& op, const Choose& choose)
    : forward(op + "_forward", choose), backward(op + "_backward", choose) {
  std::map<std::string, size_t> argument_at, result_at, forward_result_at;
  const auto& of_forward = forward.schema();
  for (const c10::Argument& argument : of_forward.arguments()) {
    if (argument.name() == "gradients") {
      forward_arguments.push_back({Source::kGradients, 0});
    } else {
      forward_arguments.push_back({Source::kArgument, arguments});
      argument_at[argument.name()] = arguments++;
    }
  }
  for (size_t i = 0; i < of_forward.returns().size(); ++i) forward_result_at[of_forward.returns()[i].name()] = i;
  const auto& of_op = c10::Dispatcher::singleton().findSchemaOrThrow(("abckd::" + op).c_str(), "").schema();
  for (const c10::Argument& result : of_op.returns()) {
    result_at[result.name()] = results.size();
    if (forward_result_at.count(result.name())) {
      results.push_back({Source::kResult, forward_result_at.at(result.name())});
    } else {
      passing = argument_at.at(result.name());
      results.push_back({Source::kArgument, *passing});
    }
  }
  const std::string grad = "grad_", sizes = "_sizes";
  const auto& of_backward = backward.schema();
  for (const c10::Argument& argument : of_backward.arguments()) {
    const std::string& name = argument.name();
    const std::string type = argument.type()->annotation_str();
    const bool is_tensor = type == "Tensor", is_list = type == "List[Tensor]", is_optional = type == "Optional[Tensor]";
    backward_types.push_back(is_tensor ? "Tensor" : is_list ? "Tensor[]" : is_optional ? "Tensor?" : type);
    if (name == "needed") {
      backward_arguments.push_back({Source::kNeeded, 0});
    } else if (name.rfind(grad, 0) == 0) {
      backward_arguments.push_back({Source::kGradient, result_at.at(name.substr(grad.size()))});
      materialize = materialize && is_tensor;
    } else if (argument_at.count(name)) {
      backward_arguments.push_back({Source::kArgument, argument_at.at(name)});
    } else if (forward_result_at.count(name)) {
      backward_arguments.push_back({Source::kResult, forward_result_at.at(name)});
    } else {
      backward_arguments.push_back({Source::kSizes, argument_at.at(name.substr(0, name.size() - sizes.size()))});
    }
  }
  for (const c10::Argument& result : of_backward.returns()) differentiated.push_back(argument_at.at(result.name()));
}

void Contract::operator()(const c10::OperatorHandle&, Stack* stack) const {
  Stack given(stack->end() - arguments, stack->end());
  torch::jit::drop(*stack, arguments);
  variable_list tensors;
  for (const IValue& value : given) append_tensors(value, tensors);
  TORCH_CHECK_VALUE(!tensors.empty(), "an op of abckd needs at least one tensor");
  bool differentiable = false;
  for (const Tensor& x : tensors) {
    TORCH_CHECK(!x._fw_grad(0).defined(), "forward-mode derivatives of abckd_kernels' ops don't exist");
    differentiable |= x.requires_grad();
  }
  auto state = c10::make_intrusive<State>(*this, std::move(given), tensors[0].device().type());
  if (!differentiable || !at::GradMode::is_enabled()) {
    const Stack fresh = state->run(false);
    for (size_t i = 0; i < results.size(); ++i) stack->push_back(state->result(i, fresh));
    return;
  }
  const variable_list outputs = Derived::apply(at::TensorList(tensors), state);
  auto next = outputs.begin();
  for (size_t i = 0; i < results.size(); ++i) {
    const auto count = static_cast<ptrdiff_t>(state->result_counts[i]);
    if (state->result_is_list[i]) {
      stack->emplace_back(std::vector<Tensor>(next, next + count));
    } else {
      stack->emplace_back(*next);
    }
    next += count;
  }
}

}  // namespace

void differentiate(const std::string& op, Choose choose) {
  auto contract = std::make_unique<Contract>(op, choose);
  struct Functor : c10::OperatorKernel {
    std::unique_ptr<Contract> contract;
    explicit Functor(std::unique_ptr<Contract> contract) : contract(std::move(contract)) {}
    void operator()(const c10::OperatorHandle& handle, c10::DispatchKeySet, Stack* stack) {
      (*contract)(handle, stack);
    }
  };
  // Never destroyed: an op is registered as long as the process runs.
  auto* library = new torch::Library(torch::Library::IMPL, "abckd", std::nullopt, __FILE__, __LINE__);
  library->impl(op.c_str(), torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Functor>(std::move(contract))));
}

}  // namespace abckd
