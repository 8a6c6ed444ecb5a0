"""Folders of pairs: noisy recordings, and the clean speech of each."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..files import printable
from .sources import list_audio


class Pair(NamedTuple):
    """The name of a pair, and its two files."""

    name: str
    noisy: str
    clean: str


def find_pairs(folder: Path, argument: str, sides: tuple[str, str] | None = None, part: str = "test") -> list[Pair]:
    """The pairs of a folder, in order of the noisy files.

    The two sides are folders in it. `sides` names them; without it they are noisy/ and clean/, or two whose names
    differ in these words alone (noisy_testset_wav and clean_testset_wav of VoiceBank-DEMAND); where there are several
    such, those with `part` in their names. A pair has equal names, whatever their suffixes, or names that differ in
    "noisy" and "clean", or the same number behind "fileid_" (DNS Challenge).

    Raises InputError that blames `argument`, also for a file without a counterpart.
    """
    if not folder.is_dir():
        raise InputError(f"{argument}: expected a folder of pairs, but {printable(folder)} is not a folder")
    noisy, clean = (folder / side for side in sides or _find_sides(folder, argument, part))
    noisy_files, counterparts = list_audio(noisy, argument), Counterparts(clean, argument)
    pairs, lonely = [], []
    for path in noisy_files:
        name = relative_name(path, noisy)
        found = counterparts.find(name)
        if found is None:
            lonely.append(path)
        else:
            pairs.append(Pair(name, path, found))
    lonely += sorted(set(counterparts.files) - {pair.clean for pair in pairs})
    if lonely:
        count, where = len(noisy_files) + len(counterparts.files), f"{printable(noisy)} and {printable(clean)}"
        raise InputError(
            f"{argument}: {len(lonely)} of {count} files in {where} have no counterpart in the other folder, "
            f"first {printable(lonely[0])}"
        )
    return pairs


def relative_name(path: str, folder: Path) -> str:
    """What a file of `list_audio(folder, ...)` is called below the folder, without its suffix."""
    inside = path.removeprefix(os.fspath(folder)).lstrip(os.sep)
    return printable(os.path.splitext(inside)[0].replace(os.sep, "/"))


class Counterparts:
    """The files of a folder, found by the names of those in another one that they were made from."""

    def __init__(self, folder: Path, argument: str) -> None:
        self.files = list_audio(folder, argument)
        names = {path: _keys(relative_name(path, folder)) for path in self.files}
        # Equal names win over those that need an interpretation, and of these the first file.
        self._by_key: dict[str, str] = {}
        for rank in (2, 1, 0):
            for path in reversed(self.files):
                self._by_key |= dict.fromkeys(names[path][rank : rank + 1], path)

    def find(self, name: str) -> str | None:
        """Of a name as `relative_name` gives it."""
        return next((self._by_key[key] for key in _keys(name) if key in self._by_key), None)


def _find_sides(folder: Path, argument: str, part: str) -> tuple[str, str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [(name, name.replace("noisy", "clean")) for name in names if "noisy" in name]
    found = [sides for sides in found if sides[1] in names]
    for preferred in ([sides for sides in found if sides[0] == "noisy"], [s for s in found if part in s[0]], found):
        if len(preferred) == 1:
            return preferred[0]
    expected = "noisy/ and clean/, or noisy_NAME/ and clean_NAME/,"
    if found:
        several = ", ".join(sides[0] for sides in found)
        raise InputError(f"{argument}: {printable(folder)} has several noisy sides, {several}; choose by --sides")
    there = printable(", ".join(names[:6])) or "no folder"
    raise InputError(f"{argument}: expected {expected} in {printable(folder)}, found {there}; --sides names others")


def _keys(name: str) -> list[str]:
    """What a file may be found by, the surest first."""
    where, _, base = name.rpartition("/")
    keys = [name, f"{where}/{_plain(base)}"]
    if number := re.search(r"fileid_(\d+)", base):
        keys.append(f"{where}/fileid_{int(number[1])}")
    return keys


def _plain(base: str) -> str:
    """Without what tells the sides of a pair, or copies at other rates, apart."""
    return re.sub(r"_16k(hz)?$", "", re.sub("noisy|clean", "", base, flags=re.IGNORECASE), flags=re.IGNORECASE)
