"""PESQ in a process of its own: its C code crashes on some recordings, and takes down who calls it.

As a program this file answers, on its standard output, pairs of waveforms that it reads from its standard input.
It imports nothing of this package, so that it starts at once.
"""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_RATE = 16_000
_SECONDS = 120.0
"""For an answer. PESQ needs one second for some minutes of sound."""


class PesqProcess:
    """A process that is started when it is needed, and again after it has died."""

    command = (sys.executable, __file__)

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def __call__(self, estimate: np.ndarray, target: np.ndarray) -> tuple[float, str]:
        """PESQ-WB of float32 (N,), and "", or NaN and why there is no value."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        process = self._process
        timer = threading.Timer(_SECONDS, process.kill)
        timer.start()
        try:
            pickle.dump((estimate, target), process.stdin)
            process.stdin.flush()
            return pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            process.kill()
            code = process.wait()
            return math.nan, f"PESQ crashed (status {code})" if timer.is_alive() else "PESQ took too long"
        finally:
            timer.cancel()

    def __del__(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _measure(estimate: np.ndarray, target: np.ndarray) -> tuple[float, str]:
    import pesq

    try:
        return float(pesq.pesq(_RATE, target, estimate, "wb")), ""
    except (pesq.PesqError, ValueError, ZeroDivisionError) as error:  # too short, or no utterance found in one of them
        why = error.args[0] if error.args else type(error).__name__
        return math.nan, f"PESQ: {why.decode() if isinstance(why, bytes) else why}"


def _serve() -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks decides what an interruption means
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    while True:
        try:
            pair = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(_measure(*pair), answers)
        answers.flush()


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file, whose names are none of the packages' that are imported
    _serve()
