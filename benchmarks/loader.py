"""How many training mixtures per second a loader makes: from folders, from tar shards, and prepared ones.

    python -m benchmarks.loader                                  on audio that it generates
    python -m benchmarks.loader --clean speech/ --noise noise/   on yours (folders or shards)

Mixing is single-threaded work of the CPU, so that workers add up as long as there are cores: a GPU that takes B
examples in s seconds is not kept waiting by B / s / (mixtures per second and worker) workers.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset

from abckd_dns.constants import SAMPLE_RATE
from abckd_dns.data.mixtures import Mixtures
from abckd_dns.data.prepared import Prepared
from abckd_dns.data.preparing import prepare
from abckd_dns.options import MixtureOptions, PrepareOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", type=Path)
    parser.add_argument("--noise", type=Path)
    parser.add_argument("--rirs", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a mixture")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--count", type=int, default=512, help="mixtures per measurement")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    if (arguments.clean is None) != (arguments.noise is None):
        parser.error("give both --clean and --noise, or neither")
    torch.set_num_threads(1)
    length = round(arguments.seconds * SAMPLE_RATE)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        places = {"given": MixtureOptions(clean=arguments.clean, noise=arguments.noise, rirs=arguments.rirs)}
        if arguments.clean is None:
            places = _generated(root)
        datasets: dict[str, Dataset] = {
            name: Mixtures(options, length, arguments.count, seed=0) for name, options in places.items()
        }
        of_prepared = vars(next(iter(places.values())))
        prepare(
            PrepareOptions(**of_prepared, out=root / "prepared", count=64, segment_seconds=arguments.seconds, seed=0)
        )
        datasets["prepared"] = Prepared(root / "prepared", length, arguments.count, seed=0)
        print(f"{arguments.count} mixtures of {arguments.seconds:g} s in batches of {arguments.batch_size}")
        print(f"{'source':>12} {'workers':>8} {'mixtures/s':>11} {'per worker':>11}")
        for name, dataset in datasets.items():
            for workers in arguments.workers:
                rate = _rate(dataset, arguments.batch_size, workers)
                print(f"{name:>12} {workers:>8} {rate:>11.0f} {rate / max(1, workers):>11.0f}", flush=True)


def _rate(dataset: Dataset, batch_size: int, workers: int) -> float:
    """Mixtures per second from the second batch on: starting the workers is not what is measured."""
    batches = iter(DataLoader(dataset, batch_size, num_workers=workers))
    next(batches)
    start, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch["noisy"])
    return count / (time.perf_counter() - start)


def _generated(root: Path) -> dict[str, MixtureOptions]:
    """White noise in files of 10 s, as wav, as flac, and as wav in tar shards: only the reading matters."""
    rng = np.random.default_rng(0)
    for side in ("clean", "noise"):
        for suffix in ("wav", "flac"):
            (root / suffix / side).mkdir(parents=True)
        (root / "shards" / side).mkdir(parents=True)
        for shard in range(2):
            with tarfile.open(root / "shards" / side / f"{shard:03}.tar", "w") as archive:
                for index in range(16):
                    samples = 0.1 * rng.standard_normal(10 * SAMPLE_RATE).astype(np.float32)
                    for suffix in ("wav", "flac"):
                        soundfile.write(root / suffix / side / f"{shard}-{index}.{suffix}", samples, SAMPLE_RATE)
                    content = io.BytesIO()
                    soundfile.write(content, samples, SAMPLE_RATE, format="WAV")
                    member = tarfile.TarInfo(f"{index:05}.wav")
                    member.size = content.tell()
                    content.seek(0)
                    archive.addfile(member, content)
    return {
        name: MixtureOptions(clean=root / name / "clean", noise=root / name / "noise")
        for name in ("wav", "flac", "shards")
    }


if __name__ == "__main__":
    main()
