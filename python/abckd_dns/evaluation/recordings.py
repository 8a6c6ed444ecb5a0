"""Test sets that lie on the disk: recordings, and pairs of noisy and clean ones."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from ..constants import SAMPLE_RATE
from ..data.audio import Header, read_header, read_speech
from ..data.pairs import find_pairs, relative_name
from ..data.sources import list_audio
from ..errors import InputError
from ..files import printable


class Recordings(Dataset):
    """The recordings of a folder: {"noisy": (N,)}."""

    def __init__(self, folder: Path, argument: str) -> None:
        self.noisy = list_audio(folder, argument)
        self._names = [relative_name(path, folder) for path in self.noisy]

    def __len__(self) -> int:
        return len(self.noisy)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"noisy": read_speech(self.noisy[index])}

    def name(self, index: int) -> str:
        return self._names[index]

    def files(self) -> list[str]:
        """Everything that is read."""
        return self.noisy


class Pairs(Recordings):
    """The recordings of a folder whose clean counterparts lie in a folder beside it, as `find_pairs` finds them:
    {"noisy": (N,), "clean": (N,)}. With `cut` the longer of two ends with the shorter."""

    def __init__(
        self, folder: Path, argument: str = "--pairs", sides: tuple[str, str] | None = None, cut: bool = False
    ) -> None:
        pairs = find_pairs(folder, argument, sides)
        self._names, self.noisy, self.clean = (list(values) for values in zip(*pairs, strict=True))
        self.argument, self.cut = argument, cut

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Raises InputError if the two do not belong together."""
        noisy, clean = self.noisy[index], self.clean[index]
        for what, of_noisy, of_clean in _differences(read_header(noisy), read_header(clean)):
            self._refuse(index, what.format(of_noisy), what.format(of_clean))
        sides = {"noisy": read_speech(noisy), "clean": read_speech(clean)}
        lengths = [len(side) for side in sides.values()]
        if self.cut:
            return {name: side[: min(lengths)] for name, side in sides.items()}
        if lengths[0] != lengths[1]:
            self._refuse(index, *(f"{length / SAMPLE_RATE:.4f} s" for length in lengths), hint="; see --cut")
        return sides

    def _refuse(self, index: int, of_noisy: str, of_clean: str, hint: str = "") -> None:
        raise InputError(
            f"{self.argument}: {printable(self.noisy[index])} has {of_noisy}, but its clean file "
            f"{printable(self.clean[index])} has {of_clean}{hint}"
        )

    def files(self) -> list[str]:
        return [*self.noisy, *self.clean]


def _differences(noisy: Header, clean: Header) -> list[tuple[str, int, int]]:
    """What must not differ and does."""
    found = [
        ("a sample rate of {} Hz", noisy.rate, clean.rate),
        ("{} channels", noisy.channels, clean.channels),
    ]
    return [difference for difference in found if difference[1] != difference[2]]
