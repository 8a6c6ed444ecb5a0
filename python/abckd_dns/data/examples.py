"""What a command learns from: mixtures, prepared mixtures, and pairs, in any share, with augmentation."""

from __future__ import annotations

from torch.utils.data import Dataset

from ..errors import InputError
from ..options import ExampleOptions
from .augment import Augmented
from .mixtures import Blend, Mixtures, PairSegments
from .pools import PairPool, Pool
from .prepared import Prepared


def labelled_examples(options: ExampleOptions, length: int, count: int) -> Dataset:
    """`count` examples of `length` samples with clean speech, as `options` say. Raises InputError."""
    examples = _mixtures(options, length, count)
    if options.pairs is not None:
        pool = PairPool(options.pairs, "--pairs", options.max_corrupt, options.sides)
        pairs = PairSegments(pool, length, count, options.seed, options.min_speech_level)
        examples = pairs if examples is None else Blend(examples, pairs, options.pairs_fraction, options.seed)
    return examples


def augmented(examples: Dataset, options: ExampleOptions) -> Dataset:
    """`examples`, through --augment."""
    return Augmented(examples, options.augment, options.seed) if options.augment else examples


def _mixtures(options: ExampleOptions, length: int, count: int) -> Dataset | None:
    """Those of --prepared, or of --clean and --noise; None if there is neither."""
    prepared = getattr(options, "prepared", None)
    given = [name for name in ("clean", "noise", "rirs") if getattr(options, name) is not None]
    if prepared is not None:
        if given:
            raise InputError(f"--{given[0]}: {prepared} (--prepared) is mixed already; leave one of them out")
        return Prepared(prepared, length, count, options.seed)
    if not given and options.pairs is not None:
        return None
    return Mixtures(options, length, count, options.seed)


def inventory(examples: Dataset) -> dict[str, str]:
    """By argument, what the examples are made of: how many files, and a digest of their names below the folder that
    all of them have in common. Other files are other examples; a folder that has moved gives the same."""
    found: dict[str, str] = {}
    for part in getattr(examples, "__dict__", {}).values():
        if isinstance(part, Pool):
            found[part.argument] = part.inventory()
        elif isinstance(part, Dataset):
            found |= inventory(part)
    if isinstance(examples, Prepared):
        found["--prepared"] = examples.inventory()
    return found
