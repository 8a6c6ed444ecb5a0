"""The documentation names every kernel, what it points to exists, and its Python runs."""

import re

import pytest
import torch
from pages import ROOT, blocks, pages
from torch import nn
from torch.nn import functional

KERNELS = (ROOT / "docs" / "kernels.md").read_text()
RESOURCES = (ROOT / "docs" / "resources.md").read_text()


def kernels() -> list[str]:
    """Names of all GPU kernels as the documentation has them."""
    cuda = [
        name
        for file in ROOT.glob("csrc/**/*.cuh")
        for name in re.findall(r"__global__.*?(\w+_kernel)\(", file.read_text(), re.DOTALL)
    ]
    triton = [
        f"{file.parent.name}.{name}"
        for file in ROOT.glob("abckd_kernels/ops/*/triton.py")
        for name in re.findall(r"^def (\w+_kernel)\(", file.read_text(), re.MULTILINE)
    ]
    return [*cuda, *triton]


def test_kernels_are_found():
    """Each that a source file declares: none has a name that the test of its row overlooks."""
    cuda = sum(file.read_text().count("__global__") for file in ROOT.glob("csrc/**/*.cuh"))
    launched = {
        f"{file.parent.name}.{name}"
        for file in ROOT.glob("abckd_kernels/ops/*/triton.py")
        for name in re.findall(r"\blaunch\(\s*(\w+)", file.read_text())
    }
    assert launched <= set(kernels()) and len(kernels()) == cuda + len(launched)


@pytest.mark.parametrize("kernel", kernels())
def test_every_kernel_has_its_row(kernel):
    assert f"| [{kernel}](" in KERNELS and f"| {kernel} |" in RESOURCES


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page):
    file = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", file.read_text()):
        assert (file.parent / target).exists(), target


# ---------------------------------------------------------------------------------------------- code blocks

README = blocks("README.md", "python")
ELSEWHERE = {
    "docs/deployment.md": 2,  # tests/dns/test_docs_commands.py
    "docs/cached_teachers.md": 2,  # tests/cache
    "docs/networks.md": 10,  # tests/distill/test_pages.py
    "docs/trainers.md": 7,
}


def test_every_block_of_python_runs_in_a_test():
    found = {page: len(blocks(page, "python")) for page in pages()}
    assert {page: count for page, count in found.items() if count} == {"README.md": len(README)} | ELSEWHERE


def test_loss_by_hand_and_ours_are_the_same():
    """README's first block: what a user had before, and what replaces it."""
    before, after = README[0].split("# after\n")
    torch.manual_seed(0)
    features = [[torch.randn(4, c, 6, 5).requires_grad_() for c in channels] for channels in ((3, 5), (2, 4, 7))]
    names = {"torch": torch, "F": functional, "task_loss": torch.tensor(0.5)}
    names |= dict(zip(("student_features", "teacher_features"), features, strict=True))
    losses, gradients = [], []
    for code in (before, after):
        exec(code, names)
        losses.append(names["loss"].item())
        gradients.append(torch.autograd.grad(names["loss"], features[0]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] > 0.5
    torch.testing.assert_close(*gradients)


class Layers(nn.Module):
    """A chain of named layers, of which one may be a chain itself."""

    def __init__(self, **layers: nn.Module):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


def test_distiller_by_layer_names(tmp_path, monkeypatch):
    """README's second block, up to a step of its optimiser; its third, with the teacher of the second in a cache."""

    def chain(*channels):
        pairs = zip(channels, channels[1:], strict=False)
        return [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairs]

    torch.manual_seed(0)
    student = Layers(encoder=nn.Sequential(*chain(1, 16, 32)), head=nn.Conv2d(32, 1, 1))
    layers = chain(1, 64, 128, 256)
    teacher = Layers(layer1=layers[0], layer2=layers[1], layer3=layers[2], head=nn.Conv2d(256, 1, 1))
    x, y = torch.randn(2, 1, 6, 5), torch.randn(2, 1, 6, 5)
    names = {"torch": torch, "student": student, "teacher": teacher, "x": x, "y": y, "task_loss": nn.MSELoss()}
    exec(README[1], names)
    of_head, of_loss = student.head.weight.grad, [p.grad for p in names["loss"].parameters()]
    assert of_head.abs().max() > 0 and of_loss and all(g.abs().max() > 0 for g in of_loss)

    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    with_teacher = names["distiller"](x).loss
    exec(README[2], names | {"dataset": list(x), "positions": [0, 1]}, names)
    torch.testing.assert_close(names["output"].loss, with_teacher, rtol=0.02, atol=0)  # maps in bfloat16
    assert len(README) == 3
    assert all(p.grad is None for p in teacher.parameters())
    assert torch.equal(names["output"].student, student(x))
    assert not any(module._forward_hooks for module in student.modules())
    before = student.head.weight.detach().clone()
    names["optimizer"].step()
    assert not torch.equal(student.head.weight, before)
