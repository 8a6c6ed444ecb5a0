"""The command `prepare`: examples made once, that `prepared.Prepared` reads."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack

import numpy as np
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..errors import InputError, worker_errors
from ..files import write_json, writing
from ..options import PrepareOptions, samples
from .examples import augmented, labelled_examples
from .prepared import FULL_SCALE, MANIFEST_NAME, SIDES


def prepare(options: PrepareOptions) -> None:
    if options.out.exists():
        raise InputError(f"--out: {options.out} exists; delete it, or choose another folder")
    length = samples(options.segment_seconds)
    examples = augmented(labelled_examples(options, length, options.count), options)
    unfinished = options.out.with_name(options.out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with writing(options.out):
        unfinished.mkdir(parents=True)
        # Written, not mapped into memory: a full disk kills a process that writes to a map.
        with ExitStack() as stack, worker_errors():
            files = {name: stack.enter_context((unfinished / f"{name}.npy").open("wb")) for name in SIDES}
            for file in files.values():
                header = {"descr": "<i2", "fortran_order": False, "shape": (options.count, length)}
                np.lib.format.write_array_header_1_0(file, header)
            batches = DataLoader(examples, batch_size=16, num_workers=options.workers)
            progress = stack.enter_context(tqdm(total=options.count, desc="prepare", unit="example"))
            for batch in batches:
                for name, file in files.items():
                    file.write((batch[name].clamp(-1, 1) * FULL_SCALE).round().numpy().astype("<i2").tobytes())
                progress.update(len(batch["noisy"]))
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        write_json(unfinished / MANIFEST_NAME, {"shape": [options.count, length], "options": options.model_dump()})
        unfinished.rename(options.out)
