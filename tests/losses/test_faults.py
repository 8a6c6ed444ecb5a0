"""Kinds of faults that public reports and reviews named, looked for in every loss with every option."""

import copy
import inspect
import itertools

import cases
import pytest
import suite_faults as faults
import torch
from suite import as_list, changed, gradients
from torch import nn
from torch.autograd import forward_ad

from abckd_kernels.losses import table

LOSSES = []
FORMS = faults.forms()
each_form = pytest.mark.parametrize("form", FORMS, ids=str)


def about(condition):
    """The test is about the forms for which condition(form) holds."""
    chosen = [form for form in FORMS if condition(form)]
    return pytest.mark.parametrize("form", chosen, ids=str)


def value_of(result):
    """The loss alone, as one number."""
    return (result[0] if isinstance(result, tuple) else result).sum()


def call(form, students, teacher, **options):
    return value_of(form(students if form.layers else students[0], teacher, **options))


def test_every_loss_has_forms():
    """No loss is forgotten, neither as a function nor with learned parts."""
    subjects = {faults.subject(form) for form in FORMS}
    for entry in table():
        assert entry.function is None or entry.function in subjects, entry.name
        assert not entry.learned or entry.module in subjects, entry.name


# ---------------------------------------------------------------------------------------------- host and device


@pytest.mark.parametrize(
    "form, variant",
    [
        pytest.param(form, variant, id=f"{form}-{variant}")
        for form, variant in itertools.product(FORMS, faults.VARIANTS)
        if faults.has_variant(form, variant)
    ],
)
def test_nothing_crosses_between_host_and_device(form, variant):
    """Forward and backward on a GPU neither copy from or to the host nor wait: a CUDA graph can hold them."""
    assert not faults.crossings(form, variant)


@each_form
def test_meta_tensors(form):
    """Shapes alone: a scalar of the right dtype, gradients of the right shapes."""
    dtype = form.dtypes[0]
    student, teacher, arguments = faults.inputs(form, dtype)

    def meta(x):
        return torch.empty_like(x, device="meta").requires_grad_(x.requires_grad)

    student, teacher, arguments = faults.mapped(meta, (student, teacher, arguments))
    module = copy.deepcopy(form.form(dtype)).to("meta") if form.module else form.function
    result = module(student, teacher, **arguments)
    value = value_of(result)
    assert value.shape == () and value.dtype == torch.float32 and value.is_meta
    assert [g.shape for g in gradients(value, student)] == [x.shape for x in as_list(student)]


# ---------------------------------------------------------------------------------------------- transforms


@each_form
def test_second_derivatives_are_right_or_refused(form):
    """Of a loss behind a layer, along a random direction: equal to finite differences, or an error that says so."""
    student, teacher, _ = faults.inputs(form, torch.float64, batch=3)
    state = dict(form.form(torch.float64).named_parameters()) if form.module else {}
    count = len(as_list(student))
    generator = torch.Generator().manual_seed(3)
    # Away from the value that features of both have alike, where |x - y| has no derivative.
    start = [x.detach() + 0.01 * torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in as_list(student)]
    start += [x.detach() for x in state.values()]
    direction = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in start]

    def penalty(leaves):
        """The square of the gradient's norm."""
        behind = [x + 0.1 * x.square() for x in leaves[:count]]
        students = behind if form.layers else behind[0]
        if form.module:
            module, arguments = copy.deepcopy(form.form(torch.float64)), form.arguments(students, teacher)
            given = dict(zip(state, leaves[count:], strict=True))
            value = torch.func.functional_call(module, given, (students, teacher), arguments)
        else:
            value = form(students, teacher)
        grads = torch.autograd.grad(value_of(value), leaves, create_graph=True, allow_unused=True)
        return sum(g.square().sum() for g in grads if g is not None)

    def at(step):
        return penalty([(x + step * d).requires_grad_() for x, d in zip(start, direction, strict=True)])

    leaves = [x.clone().requires_grad_() for x in start]
    try:
        grads = torch.autograd.grad(penalty(leaves), leaves, allow_unused=True)
    except RuntimeError as error:
        assert "second derivative" in str(error), error
        return
    ours = sum((g * d).sum() for g, d in zip(grads, direction, strict=True) if g is not None)
    expected = (at(1e-5) - at(-1e-5)) / 2e-5
    scale = max(abs(expected.item()), 1e-3 * penalty(leaves).item(), 1e-12)
    assert abs(ours - expected).item() < 1e-3 * scale, f"{ours.item()}, by finite differences {expected.item()}"


@each_form
def test_forward_mode_is_right_or_refused(form):
    """A tangent of the student's features is carried to the loss, or the call is an error."""
    student, teacher, _ = faults.inputs(form, torch.float64, batch=3)
    start = [x.detach() for x in as_list(student)]
    generator = torch.Generator().manual_seed(3)
    tangents = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in start]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, v) for x, v in zip(start, tangents, strict=True)]
        try:
            ours = forward_ad.unpack_dual(call(form, duals, teacher)).tangent
        except (RuntimeError, NotImplementedError) as error:
            assert "forward" in str(error).lower(), error
            return
    ends = [call(form, [x + h * v for x, v in zip(start, tangents, strict=True)], teacher) for h in (1e-6, -1e-6)]
    expected = (ends[0] - ends[1]) / 2e-6
    assert ours is not None, f"no tangent, by finite differences {expected.item()}"
    torch.testing.assert_close(ours, expected.detach(), rtol=1e-4, atol=1e-7)


# ---------------------------------------------------------------------------------------------- what callers do


@about(lambda form: form.padded)
def test_lengths_changed_before_backward(form):
    """A buffer of lengths that is used again: an error, or the gradient of the lengths that forward saw."""
    student, teacher, _ = faults.inputs(form, torch.float64)
    lengths = faults.lengths(form, student)
    expected = gradients(value_of(form(student, teacher, lengths=lengths.clone())), form.leaves(student))
    value = value_of(form(student, teacher, lengths=lengths))
    lengths.copy_(torch.tensor([1, 2, 1, 2]))
    try:
        ours = gradients(value, form.leaves(student))
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error), error
        return
    torch.testing.assert_close(ours, expected)


OF_THE_TEACHER = ("labels", "clean", "margins")  # what comes from it, or from the data


@each_form
def test_teachers_of_inference_mode(form):
    """What a teacher made under torch.inference_mode() has the loss and gradients of its copy."""
    student, teacher, arguments = faults.inputs(form, form.dtypes[0])
    expected = value_of(form(student, teacher))
    expected_grads = gradients(expected, form.leaves(student))
    with torch.inference_mode():
        inference, arguments = faults.mapped(
            torch.clone, (teacher, {name: value for name, value in arguments.items() if name in OF_THE_TEACHER})
        )  # fmt: skip
    value = value_of(form.form(form.dtypes[0])(student, inference, **form.arguments(student, teacher) | arguments))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradients(value, form.leaves(student)), expected_grads)


@about(lambda form: form.module and torch.float32 in form.dtypes)
@pytest.mark.parametrize("half", cases.HALF_DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("features", ["float32", "half"])
def test_learned_parts_in_half_precision(form, half, features):
    """As .half(), .to(bfloat16) and FSDP2's mixed precision leave them: about the loss in float32, finite gradients."""
    module = copy.deepcopy(form.form(torch.float32)).to(half)
    student, teacher, arguments = faults.inputs(form, half if features == "half" else torch.float32)
    value = value_of(module(student, teacher, **arguments))
    exact = copy.deepcopy(module).float()
    expected = value_of(exact(*faults.mapped(torch.Tensor.float, (student, teacher)), **arguments))
    assert value.item() == pytest.approx(expected.item(), rel=0.03, abs=1e-3)
    assert all(g.isfinite().all() for g in gradients(value, [*as_list(student), *module.parameters()]))


@about(lambda form: form.module and form.inputs is None and "normalize=frame" not in form.name)  # which needs bands
@pytest.mark.parametrize("one", [False, True], ids=["", "one position"])
def test_a_last_batch_of_one_sample(form, one):
    """In training: learned parts take a batch of one sample, pooled features (1, C, 1, 1) among them."""
    student, teacher, arguments = faults.inputs(form, torch.float32, batch=1)
    if one:
        pooled = (changed(x, lambda y: y.mean(tuple(range(2, y.dim())), keepdim=True)) for x in (student, teacher))
        student, teacher = pooled
    module = copy.deepcopy(form.form(torch.float32)).train()
    value = value_of(module(student, teacher, **arguments))
    grads = gradients(value, [*as_list(student), *module.parameters()])
    assert value.isfinite() and all(g.isfinite().all() for g in grads)
    assert all(x.isfinite().all() for x in module.state_dict().values())


# ---------------------------------------------------------------------------------------------- messages


@each_form
def test_messages_never_print_tensors(form):
    """An argument that is wrongly a tensor, or holds one: the error names it and is short."""
    student, teacher, arguments = faults.inputs(form, form.dtypes[0])
    function = form.form(form.dtypes[0])
    parameters = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    parameters = [name for name in parameters if name != "return_attention"]  # whose truth value Python asks for
    whole = dict(zip(parameters, (student, teacher), strict=False)) | arguments
    large = torch.rand(40, 30)
    for name, wrong in itertools.product(parameters, (large, [large, large], {"x": large}, large.to(torch.complex64))):
        try:
            function(**whole | {name: wrong})
        except Exception as error:
            text = f"{name}: {type(error).__name__}: {error}"
            assert isinstance(error, TypeError | ValueError), text[:300]
            assert "tensor([" not in text and len(text) < 300, text[:300]


WRONG_PADDING = [
    ({"lengths": torch.ones(4, dtype=torch.complex64)}, TypeError, "lengths"),
    ({"lengths": torch.ones(4)}, TypeError, "lengths"),
    ({"lengths": "long"}, TypeError, "lengths"),
    ({"lengths": [1, 2, 3]}, ValueError, "lengths"),
    ({"lengths": [1, 2, 3, 4], "padded_length": "8"}, TypeError, "padded_length"),
    ({"lengths": [1, 2, 3, 4], "padded_length": 8.0}, ValueError, "padded_length"),
    ({"lengths": [1, 2, 3, 4], "padded_length": True}, TypeError, "padded_length"),
    ({"lengths": [1, 2, 3, 4], "padded_length": 0}, ValueError, "padded_length"),
]


@about(lambda form: form.padded)
def test_padding_of_the_wrong_kind(form):
    student, teacher, _ = faults.inputs(form, form.dtypes[0])
    for wrong, error, named in WRONG_PADDING:
        with pytest.raises(error, match=f"^{named}: expected"):
            form(student, teacher, **wrong)
