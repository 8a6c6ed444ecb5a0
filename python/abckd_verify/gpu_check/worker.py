"""The process that runs items: `python -m abckd_verify.gpu_check.worker PART BACKEND DEVICE FILE`, items on its input.

It writes two lines of JSON to FILE (-: its output) for each item, one before and one behind it, so that the last line
of a process that died says what killed it. It ends by itself behind an item after which the GPU answers no more.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Iterable
from typing import TextIO

import torch

from abckd_kernels import use_backend

from . import parts
from .plan import BY_NAME
from .setting import Setting

LOST = 3  # exit status: the GPU answers no more


def work(part: str, backend: str, setting: Setting, items: Iterable[str], file: TextIO) -> int:
    """Run the items; the exit status: 1 if one failed."""
    status = 0
    with use_backend(backend):
        for item in items:
            _write(file, part=part, backend=backend, item=item, status="begun")
            start = time.monotonic()
            try:
                result, outcome, message = BY_NAME[part].run(setting, item), "passed", ""
                if setting.is_gpu:
                    torch.cuda.synchronize()
            except parts.Skipped as reason:
                result, outcome, message = {}, "skipped", str(reason)
            except Exception as error:
                traceback.print_exc()
                result, outcome, message = {}, "failed", f"{type(error).__name__}: {error}"[:2000]
                status = 1
            lost = outcome == "failed" and setting.is_gpu and _is_lost()
            if lost:
                message += " (and the GPU answers no more)"
            seconds = round(time.monotonic() - start, 3)
            _write(file, part=part, backend=backend, item=item, status=outcome, seconds=seconds, message=message,
                   result=result)  # fmt: skip
            if lost:
                return LOST
    return status


def _is_lost() -> bool:
    """True after an error that stays until the process ends, such as an illegal address."""
    try:
        torch.cuda.synchronize()
        return False
    except RuntimeError:
        return True


def _write(file: TextIO, **line) -> None:
    file.write(json.dumps(line) + "\n")
    file.flush()


def main() -> None:
    part, backend, device, name = sys.argv[1:]
    items = sys.stdin.read().splitlines()
    # Fresh memory is then NaN: what is not written is found.
    torch.use_deterministic_algorithms("times" not in part, warn_only=True)
    if name == "-":
        raise SystemExit(work(part, backend, Setting(device), items, sys.stdout))
    with open(name, "a") as file:
        raise SystemExit(work(part, backend, Setting(device), items, file))


if __name__ == "__main__":
    main()
