"""Test sets that lie on the disk: recordings, and pairs of noisy and clean ones."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from ..data.audio import read_header, read_speech
from ..data.sources import list_audio
from ..errors import InputError


class Recordings(Dataset):
    """The recordings of a folder: {"noisy": (N,)}."""

    def __init__(self, folder: Path, argument: str) -> None:
        self.folder, self.argument = folder, argument
        self.noisy = list_audio(folder, argument)
        for path in self.noisy:
            self._check_length(path)

    def _check_length(self, path: Path) -> None:
        if not read_header(path).length:
            raise InputError(f"{self.argument}: {path} has no samples")

    def __len__(self) -> int:
        return len(self.noisy)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"noisy": read_speech(self.noisy[index])}

    def name(self, index: int) -> str:
        return self.noisy[index].relative_to(self.folder).with_suffix("").as_posix()


class Pairs(Recordings):
    """The recordings of a folder whose clean counterparts lie in a folder beside it:
    {"noisy": (N,), "clean": (N,)}."""

    _SUFFIXES = ("", "_testset_wav")  # the first is also what the DNS Challenge has, with other names of files

    def __init__(self, folder: Path, argument: str = "--pairs") -> None:
        if not folder.is_dir():
            raise InputError(f"{argument}: expected a folder of pairs, but {folder} is not a folder")
        for suffix in self._SUFFIXES:
            noisy, clean = folder / f"noisy{suffix}", folder / f"clean{suffix}"
            if noisy.is_dir() and clean.is_dir():
                break
        else:
            expected = " or ".join(f"noisy{suffix}/ and clean{suffix}/" for suffix in self._SUFFIXES)
            found = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
            raise InputError(f"{argument}: expected {expected} in {folder}, found {found}")
        super().__init__(noisy, argument)
        self.clean = self._match(list_audio(clean, argument), clean)
        for pair in zip(self.noisy, self.clean, strict=True):
            self._check_pair(*pair)

    def _match(self, clean: list[Path], folder: Path) -> list[Path]:
        """The clean file of every noisy one."""
        left = set(clean)
        matched, lonely = [], []
        for path in self.noisy:
            candidates = [folder / path.relative_to(self.folder)]
            if number := re.search(r"_fileid_(\d+)$", path.stem):
                candidates.append(candidates[0].with_name(f"clean_fileid_{number[1]}{path.suffix}"))
            found = [candidate for candidate in candidates if candidate in left]
            matched += found[:1]
            lonely += [path] * (not found)
        lonely += sorted(left - set(matched))
        if lonely:
            raise InputError(
                f"{self.argument}: {len(lonely)} of {len(self.noisy) + len(clean)} files in {self.folder} and "
                f"{folder} have no counterpart in the other folder, first {lonely[0]}"
            )
        return matched

    def _check_pair(self, noisy: Path, clean: Path) -> None:
        a, b = read_header(noisy), read_header(clean)
        for what, of_noisy, of_clean in (
            ("a sample rate of {} Hz", a.rate, b.rate),
            ("{} channels", a.channels, b.channels),
            ("{} samples", a.length, b.length),
        ):
            if of_noisy != of_clean:
                raise InputError(
                    f"{self.argument}: {noisy} has {what.format(of_noisy)}, but its clean file {clean} has "
                    f"{what.format(of_clean)}"
                )

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return super().__getitem__(index) | {"clean": read_speech(self.clean[index])}
