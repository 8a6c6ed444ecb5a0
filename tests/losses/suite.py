"""What every loss has to pass. A family's test file has rows, `LOSSES`, and the tests that are its own:

    from suite import *  # noqa: F403 - the tests that every loss passes
    from suite import Loss

    LOSSES = [Loss("sp", sp_loss, naive.sp, student=(3, 6, 5), teacher=(4, 9, 4), options={"normalize": "l1"}), ...]

and the published numbers that it accounts for (tests/parity; `parity.py`). conftest.py runs each test here for each
row that it is about. No two files under tests/ may have one name: beside tests/test_tap.py goes test_tap_losses.py.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import cases
import pytest
import torch
from parity import Vectors
from torch import nn

from abckd_kernels.losses import table


@dataclass(eq=False)
class Loss:
    """What there is to know about a loss; a row of tests.

    name          of the row; several rows may share one.
    function      its functional form; None of a loss with learned parts (`module`).
    definition    what it should be: of float64 NumPy arrays and the options, to a number.
    student       shape of the student's feature without the batch; a list of shapes: the loss takes lists of layers.
    teacher       as student; as many layers as the loss wants.
    options       of the function, and of the definition.
    module        makes the nn.Module of a loss with learned parts, whose options are in it. The definition gets
                  `parameters`, the state dict in NumPy, too.
    extra         of (student, teacher) to a dict of further arguments that belong to them, such as labels.
    inputs        of (dtype, batch, seed) to (student, teacher), without gradients, where they aren't normal features.
    large         as inputs, of training size.
    time          the axis of the frames, or samples, that `lengths` counts; None: there is none.
    padded        takes `lengths`.
    spatial       how many spatial axes features may have.
    vectors       features may be (B, D), too, with the result of the flattened ones.
    pairs         of lists it is the weighted mean over pairs.
    of_batch      relates the samples to each other; else it is the mean over samples.
    invariant     what changes nothing: "scale" (of the student), "channels" (order of the student's), "batch" (order).
    nonnegative   never below zero.
    zero_at_equality   zero, with zero gradient, where the student is the teacher.
    dtypes        that it takes.
    precision     relative error of value and gradient that computing in float32 may make.
    half_scale    log2 of what the loss is multiplied by at training size in half precision, a weight and the scale of
                  GradScaler, which begins at 2^16.
    excused       {test: why it isn't for this loss}; shown as skipped.
    """

    name: str
    function: Callable | None
    definition: Callable
    student: tuple | list = (3, 6, 5)
    teacher: tuple | list = (4, 6, 5)
    options: dict = field(default_factory=dict)
    module: Callable[[], nn.Module] | None = None
    extra: Callable | None = None
    inputs: Callable | None = None
    large: Callable | None = None
    time: int | None = 2
    padded: bool = True
    spatial: tuple = (1, 2)
    vectors: bool = False
    pairs: bool = True
    of_batch: bool = False
    invariant: str = "scale channels batch"
    nonnegative: bool = True
    zero_at_equality: bool = True
    dtypes: tuple = cases.DTYPES
    precision: float = 2e-5
    half_scale: int = 16
    excused: dict = field(default_factory=dict)

    def __post_init__(self):
        self.layers = isinstance(self.student, list)
        self.padded = self.padded and self.time is not None
        self.pairs = self.pairs and not self.layers and self.module is None
        self._modules = {}

    def __str__(self):
        plain = {k: v for k, v in self.options.items() if isinstance(v, (str, int, float, bool, tuple))}
        return "-".join([self.name, *(f"{k}={v}" for k, v in plain.items())])

    def features(self, dtype=torch.float64, batch=4, seed=0, spatial=2):
        """(student, teacher), each a tensor, or a list of them for a loss on layers. The student requires gradients."""
        if self.inputs is not None:
            student, teacher = self.inputs(dtype, batch, seed)
        else:
            made = [
                [cases.feature((batch, *shape[: 1 + spatial]), dtype, first + i) for i, shape in enumerate(shapes)]
                for shapes, first in ((self._shapes(self.student), seed), (self._shapes(self.teacher), seed + 9))
            ]
            student, teacher = made if self.layers else (x[0] for x in made)
        return changed(student, lambda x: x, True), changed(teacher, lambda x: x, False)

    def features_of_training_size(self, dtype, batch=4):
        """Features with 200 frames and 64 bands in the first layer, ten times the channels if nothing is learned."""
        if self.inputs is not None:
            assert self.large is not None, f"{self}: expected large=, which makes inputs of training size"
            student, teacher = self.large(dtype, batch, 0)
            return changed(student, lambda x: x, True), changed(teacher, lambda x: x, False)
        _, *first = self._shapes(self.student)[0]
        times = [size // small for size, small in zip((200, 64), first, strict=True)]
        channels = 1 if self.module else 10

        def larger(shapes):
            grown = [
                (c * channels, *(n * m for n, m in zip(sizes, times, strict=True)))
                for c, *sizes in self._shapes(shapes)
            ]
            return grown if self.layers else grown[0]

        grown = copy.copy(self)
        grown.student, grown.teacher = larger(self.student), larger(self.teacher)
        return grown.features(dtype, batch)

    def form(self, dtype):
        """The function; or the module with learned parts, in float64 for that, else in float32, always the same."""
        if self.module is None:
            return self.function
        wide = dtype in (torch.float64, torch.complex128)
        if wide not in self._modules:
            if wide:
                self._modules[wide] = copy.deepcopy(self.form(torch.float32)).double()
            else:
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    self._modules[wide] = self.module()
        return self._modules[wide]

    def arguments(self, student, teacher):
        """What the form takes beside the features."""
        given = {} if self.module else self.options
        return given | (self.extra(student, teacher) if self.extra else {})

    def __call__(self, student, teacher, **options):
        form = self.form(as_list(student)[0].dtype)
        return form(student, teacher, **self.arguments(student, teacher) | options)

    def takes(self, argument):
        return argument in inspect.signature(self.module().forward if self.module else self.function).parameters

    def leaves(self, student):
        """All that gets gradients: the student's features, then parameters."""
        form = self.form(as_list(student)[0].dtype)
        return [*as_list(student), *(form.parameters() if self.module else ())]

    def exact(self, student, teacher):
        """The definition's value."""
        arrays = [[widened(x).detach().numpy() for x in as_list(group)] for group in (student, teacher)]
        further = self.extra(student, teacher) if self.extra else {}
        further = {k: widened(v).detach().numpy() if isinstance(v, torch.Tensor) else v for k, v in further.items()}
        if self.module:
            state = self.form(torch.float64).state_dict()
            further["parameters"] = {name: value.numpy() for name, value in state.items()}
        return self.definition(*(arrays if self.layers else (x[0] for x in arrays)), **self.options, **further)

    def frames(self, *features):
        """How many frames each of the features has."""
        return [x.shape[self.time] for group in features for x in as_list(group)]

    def cut(self, features, frames):
        """The first frames of features."""
        return changed(features, lambda x: x.narrow(self.time, 0, frames))

    def on_one_scale(self, student, teacher, frames):
        """Features as they are; where they have different numbers of frames, each frame repeated up to that many."""
        if len(set(self.frames(student, teacher))) == 1:
            return student, teacher
        return tuple(
            changed(group, lambda x: x.repeat_interleave(frames, self.time).narrow(self.time, 0, frames))
            for group in (student, teacher)
        )

    def _shapes(self, shapes):
        return shapes if self.layers else [shapes]


def as_list(x):
    return [x] if isinstance(x, torch.Tensor) else list(x)


def widened(x):
    """In float64 or complex128; labels and masks as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float64)) if x.is_floating_point() or x.is_complex() else x


def changed(features, change, requires_grad=None):
    """The features with `change` applied to each, as new leaves."""
    wanted = [x.requires_grad if requires_grad is None else requires_grad for x in as_list(features)]
    new = [change(x.detach().clone()).requires_grad_(wish) for x, wish in zip(as_list(features), wanted, strict=True)]
    return new[0] if isinstance(features, torch.Tensor) else new


def gradients(value, leaves, **options):
    return torch.autograd.grad(value, as_list(leaves), allow_unused=True, materialize_grads=True, **options)


def largest(tensors):
    return max((x.abs().max().item() for x in tensors if x.numel()), default=0.0)


def only(condition):
    """The test is about the losses for which condition(loss) holds."""
    return pytest.mark.only.with_args(condition)


each_dtype = pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.name_of)


# ---------------------------------------------------------------------------------------------- definitions


def test_definition(loss):
    for size in (1, 2, 3, 5):
        student, teacher = loss.features(batch=size)
        assert loss(student, teacher).item() == pytest.approx(loss.exact(student, teacher), rel=1e-9, abs=1e-14), size


@only(lambda loss: loss.inputs is None and not loss.layers and 1 in loss.spatial)
def test_frames_only(loss):
    student, teacher = loss.features(spatial=1)
    assert loss(student, teacher).item() == pytest.approx(loss.exact(student, teacher), rel=1e-9)


@only(lambda loss: loss.vectors)
def test_vectors(loss):
    student, teacher = loss.features()
    rows = [x.flatten(1) for x in (student, teacher)]
    assert loss(*rows).item() == pytest.approx(loss(student, teacher).item(), rel=1e-12)


def test_gradient(loss):
    student, teacher = loss.features(batch=3, spatial=2 if loss.layers else min(loss.spatial))
    count, form = len(as_list(student)), loss.form(torch.float64)
    names = [name for name, _ in form.named_parameters()] if loss.module else []

    def value(*leaves):
        students = list(leaves[:count]) if loss.layers else leaves[0]
        if not loss.module:
            return loss(students, teacher)
        given = dict(zip(names, leaves[count:], strict=True))
        given |= {name: buffer.clone() for name, buffer in form.named_buffers()}  # statistics move
        return torch.func.functional_call(form, given, (students, teacher), loss.arguments(students, teacher))

    leaves = tuple(x.detach().clone().requires_grad_() for x in loss.leaves(student))
    many = sum(x.numel() for x in leaves) > 64  # then along random directions: one by one takes seconds
    assert torch.autograd.gradcheck(value, leaves, eps=1e-6, atol=1e-7, rtol=1e-5, fast_mode=many)
    assert all(g.abs().max() > 0 for g in gradients(value(*leaves), leaves[:count]))


@only(lambda loss: not loss.module)
def test_module_is_the_function(loss):
    student, teacher = loss.features()
    modules = [entry.module for entry in table() if entry.function is loss.function]
    assert len(modules) == 1, f"expected one entry of losses/table.py with the function {loss.function.__name__}"
    module = modules[0](**loss.options)
    assert torch.equal(module(student, teacher, **(loss.extra(student, teacher) if loss.extra else {})),
                       loss(student, teacher))  # fmt: skip
    assert not list(module.parameters()) and all(str(value) in repr(module) for value in loss.options.values())


@only(lambda loss: loss.module)
def test_state_does_not_depend_on_the_batch(loss):
    shapes = {name: value.shape for name, value in loss.form(torch.float32).state_dict().items()}
    for size in (2, 5):
        loss(*loss.features(torch.float32, batch=size))
    assert {name: value.shape for name, value in loss.form(torch.float32).state_dict().items()} == shapes


@only(lambda loss: loss.pairs)
def test_several_pairs_are_weighted(loss):
    pairs = [loss.features(seed=seed) for seed in (0, 20)]
    alone = torch.stack([loss(*pair) for pair in pairs])
    students, teachers = zip(*pairs, strict=True)
    torch.testing.assert_close(loss(students, teachers), alone.mean())
    torch.testing.assert_close(loss(students, teachers, weights=[2.0, 0.5]), alone @ torch.tensor([2.0, 0.5]).double())


# ---------------------------------------------------------------------------------------------- properties


@only(lambda loss: loss.nonnegative)
def test_never_negative(loss):
    for seed in range(5):
        assert loss(*loss.features(seed=seed)) >= 0


@only(lambda loss: loss.zero_at_equality)
def test_zero_at_equality(loss):
    student, _ = loss.features()
    value = loss(student, changed(student, torch.clone, False))
    assert abs(value) < 1e-12 and largest(gradients(value, student)) < 1e-6


def test_invariances(loss):
    student, teacher = loss.features()
    reference = loss(student, teacher)
    order = torch.tensor([2, 0, 3, 1])
    changes = {
        "scale": (changed(student, lambda x: x * 3.5), teacher),
        "channels": (changed(student, lambda x: x.flip(1)), teacher),
        "batch": (changed(student, lambda x: x[order]), changed(teacher, lambda x: x[order])),
    }
    for name, features in changes.items():
        same = torch.allclose(loss(*features), reference, rtol=1e-9, atol=1e-13)
        assert same == (name in loss.invariant), name


@only(lambda loss: not loss.of_batch)
def test_samples_are_independent(loss):
    student, teacher = loss.features()
    one = [loss(*(changed(x, lambda x, b=b: x[b : b + 1]) for x in (student, teacher))) for b in range(4)]
    torch.testing.assert_close(loss(student, teacher), torch.stack(one).mean())


def assert_unharmed_by(loss, dtype, silence, groups):
    """Finite, and gradients of ordinary size, when `silence` is applied to the student, the teacher or both."""
    student, teacher = loss.features(dtype)
    usual = largest(gradients(loss(student, teacher), loss.leaves(student)))
    assert usual > 0
    student = changed(student, silence) if "student" in groups else student
    teacher = changed(teacher, silence) if "teacher" in groups else teacher
    value = loss(student, teacher)
    assert value.isfinite()
    for grad in gradients(value, loss.leaves(student)):
        assert grad.isfinite().all() and grad.abs().max() < 100 * usual


@pytest.mark.parametrize(
    "who, dtype",
    [(who, torch.float16) for who in ("student", "teacher", "student teacher")]
    + [("all", dtype) for dtype in cases.DTYPES],
    ids=lambda x: x if isinstance(x, str) else cases.name_of(x),
)
def test_silence(loss, who, dtype):
    """A silent sample, or silent everything. What vanishes beside zero vanishes in float16 first."""

    def silence(x):
        x[slice(None) if who == "all" else 1] = 0
        return x

    assert_unharmed_by(loss, dtype, silence, "student teacher" if who == "all" else who)


@only(lambda loss: loss.time is not None)
@each_dtype
def test_a_silent_frame(loss, dtype):
    def silence(x):
        x.select(loss.time, 1).zero_()
        return x

    assert_unharmed_by(loss, dtype, silence, "student teacher")


@each_dtype
def test_one_sample_and_one_frame(loss, dtype):
    for batch_size, frames in ((1, None), (3, 1), (1, 1), (2, None)):
        student, teacher = loss.features(dtype, batch=batch_size)
        if frames and loss.time is not None:
            student, teacher = (loss.cut(x, frames) for x in (student, teacher))
        value = loss(student, teacher)
        assert value.isfinite() and all(g.isfinite().all() for g in gradients(value, loss.leaves(student)))


def test_empty_batch(loss):
    student, teacher = loss.features(loss.dtypes[0], batch=0)
    value = loss(student, teacher)
    assert value == 0 and all(g.shape[0] == 0 for g in gradients(value, student))
    assert largest(gradients(loss(student, teacher), loss.leaves(student))) == 0


def test_two_equal_samples(loss):
    student, teacher = (changed(x, lambda x: x[[0, 1, 1, 3]]) for x in loss.features())
    value = loss(student, teacher)
    assert value.isfinite() and all(g.isfinite().all() for g in gradients(value, loss.leaves(student)))


def test_teacher_is_detached_and_inputs_stay(loss):
    student, teacher = loss.features()
    teacher = changed(teacher, lambda x: x, True)
    before = [x.detach().clone() for x in (*as_list(student), *as_list(teacher))]
    frames = max(loss.frames(student)) if loss.padded else 0
    options = {"lengths": [frames, frames // 3, frames // 2, frames - 1]} if loss.padded else {}
    loss(student, teacher, **options).backward()
    assert all(x.grad is None for x in as_list(teacher)) and all(x.grad is not None for x in as_list(student))
    assert all(map(torch.equal, before, [x.detach() for x in (*as_list(student), *as_list(teacher))]))


@pytest.mark.parametrize("layout", [*cases.LAYOUTS, cases.repeated], ids=lambda layout: layout.__name__)
def test_layouts_and_backward_twice(loss, layout):
    """Strides, stride 0 among them, change nothing; nor does a second backward."""
    student, teacher = loss.features()
    strided = changed(student, torch.clone)
    leaves = as_list(strided)
    laid_out = [layout(x) for x in leaves]
    teachers = [layout(x) for x in as_list(teacher)]
    many = isinstance(student, list)
    ours = loss(laid_out if many else laid_out[0], teachers if many else teachers[0])
    copies = [x.detach().contiguous().requires_grad_() for x in laid_out]
    teachers = [x.contiguous() for x in teachers]
    value = loss(copies if many else copies[0], teachers if many else teachers[0])
    torch.testing.assert_close(ours, value)
    parameters = loss.leaves(student)[len(leaves) :]
    first = gradients(ours, [*leaves, *parameters], retain_graph=True)
    assert all(map(torch.equal, first, gradients(ours, [*leaves, *parameters])))
    expected = gradients(value, [*copies, *parameters])
    torch.testing.assert_close(first[: len(leaves)], torch.autograd.grad(laid_out, leaves, expected[: len(leaves)]))
    torch.testing.assert_close(first[len(leaves) :], expected[len(leaves) :])


def test_compiles_in_one_graph(loss, first_of_its_kind):
    """The first row of each function and class down to the graph of its gradient; those of other options by Dynamo.

    Values that Python asks for, which Dynamo now can take into its graph, test_faults.py finds for every option.
    """
    student, teacher = loss.features(loss.dtypes[0])
    form, arguments = loss.form(loss.dtypes[0]), loss.arguments(student, teacher)
    compiled = torch.compile(form, fullgraph=True, backend="aot_eager" if first_of_its_kind else "eager")
    ours = compiled(student, teacher, **arguments)
    eager = loss(student, teacher)
    torch.testing.assert_close(ours, eager)
    leaves = loss.leaves(student)
    torch.testing.assert_close(gradients(ours, leaves), gradients(eager, leaves), rtol=1e-4, atol=1e-6)
    torch._dynamo.reset()


# ---------------------------------------------------------------------------------------------- precision


def assert_gradients_close(ours, exact, loss):
    """In the norm of the largest; those of features rounded once to their dtype."""
    for grad, expected in zip(ours, exact, strict=True):
        error = largest([widened(grad) - expected]) / max(largest([expected]), 1e-300)
        assert error < max(torch.finfo(grad.dtype).eps, 2.5 * loss.precision), error


@pytest.mark.parametrize("dtype", [torch.float32, *cases.HALF_DTYPES], ids=cases.name_of)
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_narrow_dtypes_compute_in_float32(loss, dtype, autocast):
    student, teacher = loss.features(dtype, seed=5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = loss(student, teacher)
    assert value.dtype == torch.float32
    scale = 2.0**10  # shows the digits that float16's smallest numbers hide
    grads = gradients(value * scale, loss.leaves(student))
    exact_student, exact_teacher = changed(student, widened), changed(teacher, widened)
    exact = loss(exact_student, exact_teacher)
    assert value.item() == pytest.approx(exact.item(), rel=loss.precision, abs=1e-7)
    assert all(grad.dtype == x.dtype for grad, x in zip(grads, loss.leaves(student), strict=True))
    assert_gradients_close(grads, gradients(exact * scale, loss.leaves(exact_student)), loss)


@only(lambda loss: loss.module)
@pytest.mark.parametrize("dtype", cases.HALF_DTYPES, ids=cases.name_of)
@pytest.mark.parametrize("statistics", ["too", "in float32"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_parameters_in_half_precision_compute_in_float32(loss, dtype, statistics, training):
    """As .half() leaves a module, or FSDP2, whose statistics stay in float32: the value and gradients of the rounded
    parameters, widened; gradients in the parameters' dtype."""
    module = copy.deepcopy(loss.form(torch.float32)).train(training)
    if statistics == "too":
        module.to(dtype)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    student, teacher = loss.features(torch.float32)
    exact_student, exact_teacher = changed(student, widened), changed(teacher, widened)
    arguments, exact_module = loss.arguments(student, teacher), copy.deepcopy(module).double()
    value = module(student, teacher, **arguments)
    exact = exact_module(exact_student, exact_teacher, **loss.arguments(exact_student, exact_teacher))
    assert value.dtype == torch.float32 and value.item() == pytest.approx(exact.item(), rel=loss.precision, abs=1e-7)
    leaves, exact_leaves = (
        [*as_list(x), *m.parameters()] for x, m in ((student, module), (exact_student, exact_module))
    )
    grads, expected = gradients(value * 2.0**10, leaves), gradients(exact * 2.0**10, exact_leaves)
    assert all(grad.dtype == x.dtype for grad, x in zip(grads, leaves, strict=True))
    assert_gradients_close(grads, expected, loss)


@only(lambda loss: loss.module)
def test_a_batch_of_one_position_moves_no_statistics(loss):
    """The last batch of an epoch may be one sample, whose feature may be one position: no variance can be known."""
    if loss.inputs is not None:
        pytest.skip("its inputs are no features")
    module = copy.deepcopy(loss.form(torch.float32)).train()
    student, teacher = loss.features(torch.float32, batch=1)
    student, teacher = (changed(group, lambda x: x[:, :, :1, :1]) for group in (student, teacher))
    before = {name: x.clone() for name, x in module.named_buffers() if "running" in name}
    value = module(student, teacher, **loss.arguments(student, teacher))
    grads = gradients(value, [*as_list(student), *module.parameters()])
    assert value.isfinite() and all(grad.isfinite().all() for grad in grads)
    after = dict(module.named_buffers())
    assert all(torch.equal(x, after[name]) for name, x in before.items())


@only(lambda loss: torch.float16 in loss.dtypes)
@pytest.mark.big
def test_half_gradients_of_training_size(loss):
    """The loss times 2^half_scale, halved as GradScaler does where that is too much. (bfloat16 has float32's range.)

    Finite, fewer than 1 % zeros where float64 has none, and each element the exact one, rounded once, or as a sum of
    two terms that are.
    """
    student, teacher = loss.features_of_training_size(torch.float16)
    value, scale = loss(student, teacher), 2.0**loss.half_scale
    grads = gradients(value * scale, student, retain_graph=True)
    while not all(g.isfinite().all() for g in grads) and scale > 1:
        scale /= 2
        grads = gradients(value * scale, student, retain_graph=True)
    exact_student = changed(student, widened)
    exact = gradients(loss(exact_student, changed(teacher, widened)) * scale, exact_student)
    for grad, expected in zip(grads, exact, strict=True):
        assert grad.isfinite().all()
        lost = ((grad == 0) & (expected != 0)).sum().item()
        assert lost < 0.01 * (expected != 0).sum().item(), f"{lost} of {grad.numel()} are zero"
        info = torch.finfo(torch.float16)
        rounding = expected.abs().clamp_min(info.smallest_normal) * info.eps
        assert ((widened(grad) - expected).abs() <= rounding + 50 * loss.precision * largest([expected])).all()


class Student(nn.Module):
    """A layer in front of each feature: a 1x1 convolution, or a gain where inputs aren't features."""

    def __init__(self, loss, inputs):
        super().__init__()
        self.convolve = loss.inputs is None
        if self.convolve:
            kinds = {3: nn.Conv1d, 4: nn.Conv2d}
            self.layers = nn.ModuleList(kinds[x.dim()](x.shape[1], x.shape[1], 1) for x in inputs)
        else:
            self.layers = nn.ParameterList(torch.rand(x.shape[1:]) + 0.5 for x in inputs)

    def forward(self, inputs):
        return [layer(x) if self.convolve else x * layer for layer, x in zip(self.layers, inputs, strict=True)]


def test_training_with_autocast_and_grad_scaler(loss):
    """A step in float16 on the CPU: finite gradients, and parameters that move."""
    student, teacher = loss.features(loss.dtypes[0])
    inputs = [x.detach() for x in as_list(student)]
    torch.manual_seed(0)
    network, form = Student(loss, inputs), loss.form(loss.dtypes[0])
    before = [p.detach().clone() for p in network.parameters()]
    optimizer, scaler = torch.optim.SGD(network.parameters(), lr=1e-3), torch.amp.GradScaler("cpu")
    for _ in range(16):  # the scaler halves its scale until nothing overflows
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            features = network(inputs)
            features = features if isinstance(student, list) else features[0]
            value = form(features, teacher, **loss.arguments(features, teacher))
        scale = scaler.get_scale()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() == scale:
            break
    assert value.isfinite() and all(p.grad.isfinite().all() for p in network.parameters())
    assert any(not torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))


# ---------------------------------------------------------------------------------------------- padding


def padded(loss, dtype, fill, lengths, frames):
    """Features of the loss whose frames beyond lengths hold `fill`; all layers valid to ceil(lengths T / frames)."""

    def filled(x):
        for b, length in enumerate(lengths):
            x.movedim(loss.time, 1)[b, -(-length * x.shape[loss.time] // frames) :] = fill
        return x

    student, teacher = loss.features(dtype, batch=len(lengths))
    return changed(student, filled), changed(teacher, filled)


@only(lambda loss: loss.padded)
@each_dtype
def test_garbage_in_padded_frames(loss, dtype):
    frames = loss.frames(loss.features()[0])[0]
    lengths, results = (frames, frames // 2, frames * 2 // 3, 0), []
    scale = {"padded_length": frames} if loss.takes("padded_length") else {}
    for fill in (0.0, float("nan"), float("inf")):
        student, teacher = padded(loss, dtype, fill, lengths, frames)
        value = loss(student, teacher, lengths=torch.tensor(lengths), **scale)
        results.append([value, *gradients(value, loss.leaves(student))])
    count = len(as_list(student))
    assert all(map(torch.equal, results[0], results[1])) and all(map(torch.equal, results[0], results[2]))
    assert all(x.isfinite().all() for x in results[0])
    for grad in results[0][1 : 1 + count]:
        grad = grad.movedim(loss.time, 1)
        assert (grad[3] == 0).all() and (grad[1, -(-lengths[1] * grad.shape[1] // frames) :] == 0).all()


@only(lambda loss: loss.padded)
def test_lengths_are_cropping(loss):
    """A batch whose samples all end at two thirds, in layers of any resolution, is the batch cut there."""
    student, teacher = loss.features()
    student, teacher = loss.on_one_scale(student, teacher, 12)
    keep = loss.frames(student)[0] * 2 // 3
    value = loss(student, teacher, lengths=torch.full((4,), keep))
    cut_student = loss.cut(student, keep)
    expected = loss(cut_student, loss.cut(teacher, keep))
    torch.testing.assert_close(value, expected)
    ours, theirs = gradients(value, loss.leaves(student)), gradients(expected, loss.leaves(cut_student))
    count = len(as_list(student))
    for grad, part in zip(ours[:count], theirs[:count], strict=True):
        torch.testing.assert_close(grad.narrow(loss.time, 0, keep), part)
    torch.testing.assert_close(ours[count:], theirs[count:])


@only(lambda loss: loss.padded and not loss.of_batch)
def test_each_sample_counts_its_own_frames(loss):
    """Ragged lengths: the mean over samples of what each gives alone, cut to its own frames."""
    student, teacher = loss.on_one_scale(*loss.features(), 6)
    frames = loss.frames(student)[0]
    lengths = [frames, frames // 2, frames * 2 // 3, -(-frames // 3)]
    value = loss(student, teacher, lengths=lengths)
    alone = [
        loss(*(loss.cut(changed(x, lambda x, b=b: x[b : b + 1]), n) for x in (student, teacher)))
        for b, n in enumerate(lengths)
    ]
    torch.testing.assert_close(value, torch.stack(alone).mean())


# ---------------------------------------------------------------------------------------------- published numbers


def test_published(vector, published):
    """The loss and the gradients of published code, to the last digits that it has."""
    peer = Vectors(vector)
    if callable(published):
        loss, parameters = published(peer)
        peer.assert_equal(loss, parameters=parameters)
    else:
        function, options, *tolerance = published
        peer.assert_equal(function(peer.students, peer.teachers, **options), *tolerance)


# ---------------------------------------------------------------------------------------------- process groups


def takes_group(loss):
    return not loss.module and loss.takes("group")


def grouped_cases(module):
    """(loss, further arguments) of what runs in every process."""
    for loss in module.LOSSES:
        if takes_group(loss):
            yield loss, {}
            if loss.padded:
                frames = loss.frames(loss.features()[0])[0]
                yield loss, {"lengths": torch.tensor([frames, frames // 2, frames * 2 // 3, frames - 1])}


def run_grouped(rank, folder, world, module):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    group, results = torch.distributed.group.WORLD, []
    for loss, options in grouped_cases(importlib.import_module(module)):
        mine = slice(rank * 2, rank * 2 + 2)
        student, teacher = (changed(x, lambda x, mine=mine: x[mine]) for x in loss.features(batch=4))
        options = {name: value[mine] for name, value in options.items()}
        value = loss(student, teacher, group=group, **options)
        results.append((value.detach(), gradients(value, student)))
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_are_one_with_the_whole_batch(grouped, tmp_path):
    """Every process has the loss of the whole batch; averaged over processes (DDP) the gradients are those of one."""
    torch.multiprocessing.spawn(run_grouped, (str(tmp_path), 2, grouped.__name__), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for index, (loss, options) in enumerate(grouped_cases(grouped)):
        student, teacher = loss.features(batch=4)
        value = loss(student, teacher, **options)
        for rank in range(2):
            ours, grads = ranks[rank][index]
            torch.testing.assert_close(ours, value.detach(), msg=lambda m, loss=loss: f"{loss}: {m}")
            for grad, whole in zip(grads, gradients(value, student, retain_graph=True), strict=True):
                torch.testing.assert_close(grad / 2, whole[rank * 2 : rank * 2 + 2])
