"""The documentation names every kernel, and what it points to exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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
    assert len(kernels()) >= 15


@pytest.mark.parametrize("kernel", kernels())
def test_every_kernel_has_its_row(kernel):
    assert f"| [{kernel}](" in KERNELS and f"| {kernel} |" in RESOURCES


@pytest.mark.parametrize(
    "page",
    ["README.md", "csrc/README.md", "tests/simt/README.md"]
    + [f"docs/{name}.md" for name in ("kernels", "evaluation", "deployment", "study", "performance", "training")]
    + ["docs/recipes/voicebank.md", "docs/recipes/dns_challenge.md"],
)
def test_links_lead_somewhere(page):
    file = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", file.read_text()):
        assert (file.parent / target).exists(), target
