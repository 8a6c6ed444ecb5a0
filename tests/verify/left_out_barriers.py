"""Each barrier of the CUDA kernels left out in turn, in the emulator; prints {"file:line": what found it, or ""}.

Run by test_cuda_emulator.py in a process of its own. What must find a barrier's absence are the Specs' numerics.
"""

import json
import re

import torch

from abckd_kernels import use_backend
from abckd_verify import ROOT, numerics
from abckd_verify.machines.emulator import emulated
from abckd_verify.ops import SPECS
from abckd_verify.spec import tensors

HEADERS = ROOT / "csrc" / "include" / "abckd"
LARGEST = 50_000  # elements: more take the emulator seconds
BARRIER = re.compile(r"\b__sync(threads|warp)\(")


def barriers() -> list[tuple[str, str, int]]:
    """(op, file, line) of each barrier."""
    return [
        (file.stem, f"abckd/{file.name}", line)
        for file in sorted(HEADERS.glob("*.cuh"))
        if file.stem in SPECS
        for line, text in enumerate(file.read_text().splitlines(), 1)
        if BARRIER.search(text.partition("//")[0])
    ]


def finding(op: str) -> str:
    """The first failure of the op's cases, "" if none."""
    for case in SPECS[op].cases:
        largest = max(x.numel() for x in tensors(SPECS[op].make(case, "meta", "empty").values()))
        if case.dtype not in (torch.float32, torch.bfloat16) or largest > LARGEST:
            continue
        try:
            numerics.check(SPECS[op], case)
        except (RuntimeError, AssertionError) as error:
            return f"{case}: {str(error).splitlines()[0]}"
    return ""


def main():
    library, found = emulated.load(), {}
    with use_backend("cpu"):
        for op in sorted({op for op, _, _ in barriers()}):
            assert not finding(op), f"{op} fails with all of its barriers"
        for op, file, line in barriers():
            with library.without_barrier(file, line):
                found[f"{file}:{line}"] = finding(op)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
