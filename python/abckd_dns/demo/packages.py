"""Real speech and noise out of Debian packages: got, decoded, split and cached.

A cache is one folder: {train,test,...}/{speech,noise}/*.flac (16 kHz, mono), licences/, and manifest.json, which lists
every file, the source, version, licence and split of every package, and the packages that could not be had. Nothing of
the audio belongs to this project: redistribute it only under its own licences.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from ..constants import SAMPLE_RATE
from ..data.audio import read_speech
from ..data.resampling import resample
from ..errors import InputError
from ..files import user_cache

_PROGRAMS = ("apt-get", "dpkg-deb")

Clip = tuple[str, np.ndarray]  # where it comes from (one speaker, one recording), and its samples at 16 kHz


@dataclass(frozen=True)
class Package:
    """A Debian package and what to take from it."""

    name: str
    licence: str
    clips: Callable[[Path], Iterator[Clip]]  # of the folder into which it was unpacked
    place: Callable[[str], str | None]
    """Where the clips of an origin go, PART/KIND/NAME ("train/speech/june": june-000.flac, ...), or None: nowhere.
    It is the origin that decides about the split, so that none is in two parts."""
    piece_seconds: float  # clips of one place are joined to files of about this length


@dataclass(frozen=True)
class Collection:
    """The packages of one cache."""

    name: str  # of the cache's folder, and in messages
    version: int  # a cache of another version is made anew
    parts: tuple[str, ...]  # each has speech and noise, or the collection is of no use
    packages: tuple[Package, ...]
    instead: str  # what a user can do without apt

    def cache_folder(self) -> Path:
        return user_cache() / self.name


def fetch(collection: Collection) -> Path:
    """Make the cache unless it is there and complete; returns its folder."""
    folder = collection.cache_folder()
    if _is_complete(folder, collection.version):
        return folder
    for program in _PROGRAMS:
        if shutil.which(program) is None:
            raise InputError(
                f"the {collection.name} data come from Debian packages, and {program} is not on this system; "
                f"{collection.instead}"
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unfinished-") as temporary:
        made = Path(temporary, collection.name)
        _make(collection, made, Path(temporary))
        shutil.rmtree(folder, ignore_errors=True)  # of another version, or damaged
        made.rename(folder)
    return folder


def read_manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def _is_complete(folder: Path, version: int) -> bool:
    try:
        manifest = read_manifest(folder)
        return manifest["layout_version"] == version and all(
            (folder / name).stat().st_size == size for name, size in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _make(collection: Collection, folder: Path, workplace: Path) -> None:
    splits = [f"{part}/{kind}" for part in collection.parts for kind in ("speech", "noise")]
    for name in (*splits, "licences"):
        (folder / name).mkdir(parents=True)
    sources, skipped = [], []
    may_update = os.geteuid() == 0  # only root may get package lists, which a fresh container lacks
    for package in tqdm(collection.packages, desc=f"{collection.name} data", unit="package"):
        unpacked = workplace / package.name
        unpacked.mkdir()
        try:
            try:
                version = _download(package.name, unpacked)
            except InputError:
                if not may_update:
                    raise
                may_update = False
                _run("apt-get", "update", folder=unpacked)
                version = _download(package.name, unpacked)
            seconds = _write_pieces(package, unpacked, folder)
            terms = unpacked / "usr/share/doc" / package.name / "copyright"
            shutil.copy(terms, folder / "licences" / package.name)
        except InputError as error:
            # A distribution may lack one of the packages: the others can still be of use.
            warnings.warn(f"{collection.name} data without {package.name}: {error}", stacklevel=2)
            skipped.append({"package": package.name, "reason": str(error)})
            continue
        finally:
            shutil.rmtree(unpacked)
        sources.append({"package": package.name, "version": version, "licence": package.licence, "seconds": seconds})
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*.flac"))}
    for split in splits:
        if not any(name.startswith(split) for name in files):
            reasons = "; ".join(f"{entry['package']}: {entry['reason']}" for entry in skipped)
            raise InputError(
                f"no {collection.name} data for {split} ({reasons}); sudo apt-get update may help; or "
                f"{collection.instead}"
            )
    manifest = {"layout_version": collection.version, "sources": sources, "skipped": skipped, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _download(name: str, folder: Path) -> str:
    """Unpack the Debian package `name` into `folder`; returns its version."""
    _run("apt-get", "download", name, folder=folder)
    archive = next(folder.glob("*.deb")).name
    _run("dpkg-deb", "-x", archive, ".", folder=folder)
    return unquote(archive.split("_")[1])


def _run(*command: str, folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{' '.join(command)} failed: {done.stderr.strip() or f'exit {done.returncode}'}")


def _write_pieces(package: Package, unpacked: Path, folder: Path) -> dict[str, float]:
    """Join the clips of each place to files of useful length; returns the seconds per place."""
    clips_of = defaultdict(list)
    for origin, samples in package.clips(unpacked):
        place = package.place(origin)
        if place is None:
            continue
        samples = _squeeze_silence(samples)
        if len(samples):
            clips_of[place].append(_equalise(samples))
    if not clips_of:
        raise InputError(f"{package.name} has no usable audio")
    seconds = {}
    for place, clips in clips_of.items():
        samples = np.concatenate(clips)
        count = max(1, round(len(samples) / SAMPLE_RATE / package.piece_seconds))
        for index, piece in enumerate(np.array_split(samples, count)):
            soundfile.write(folder / f"{place}-{index:03}.flac", piece, SAMPLE_RATE, subtype="PCM_16")
        seconds[place] = round(len(samples) / SAMPLE_RATE, 1)
    return seconds


def _squeeze_silence(samples: np.ndarray, keep_seconds: float = 0.12) -> np.ndarray:
    """Without what lies further than `keep_seconds` from any frame louder than -50 dBFS."""
    frame, reach = SAMPLE_RATE // 100, round(keep_seconds * 100)
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    if not len(frames):
        return samples[:0]
    loud = np.sqrt(np.mean(frames**2, axis=1)) > 10 ** (-50 / 20)
    near = np.convolve(loud, np.ones(2 * reach + 1), mode="full")[reach : reach + len(loud)] > 0
    return frames[near].reshape(-1)


def _equalise(samples: np.ndarray, level_dbfs: float = -26.0) -> np.ndarray:
    """At one level, or else the SNR of a mixture would be that of the loudest clip in it alone."""
    gain = 10 ** (level_dbfs / 20) / np.sqrt(np.mean(samples**2))
    return samples * min(gain, 0.99 / np.abs(samples).max())


def prompts(root: Path) -> Iterator[Clip]:
    """Telephone prompts: .../sounds/<language>_<country>_<sex>_<speaker>/**.g722."""
    not_speech = {"beep", "beeperr", "ascending-2tone", "descending-2tone", "tt-monkeys"}
    for path in sorted(root.glob("usr/share/asterisk/sounds/*/**/*.g722")):
        if path.stem not in not_speech:
            yield path.relative_to(root).parts[4], decode_g722(path)


def hold_music(root: Path) -> Iterator[Clip]:
    """Music on hold: .../moh/<artist>-<title>.g722."""
    for path in sorted(root.glob("usr/share/asterisk/moh/*.g722")):
        yield path.stem.split("-")[0], decode_g722(path)


def decode_g722(path: Path) -> np.ndarray:
    import av  # only this function needs it

    with av.open(str(path), format="g722") as container:
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return np.concatenate(frames).astype(np.float32) / 2**15 if frames else np.zeros(0, np.float32)


def game_sounds(root: Path) -> Iterator[Clip]:
    """Ogg and wav files but music; variants of a sound differ by a number: fire_fire.1.ogg, fire_fire.2.ogg."""
    for path in sorted(root.rglob("*")):
        if path.suffix in (".ogg", ".wav") and "music" not in path.relative_to(root).parts:
            yield path.stem.split(".")[0], read_speech(path).numpy()


def spoken_stamps(root: Path) -> Iterator[Clip]:
    """Tux Paint's spoken descriptions: .../<stamp>_desc_<language>.ogg. The origin is the language."""
    for path in sorted(root.rglob("*_desc_*.ogg")):
        if soundfile.info(path).samplerate >= SAMPLE_RATE:  # a few are telephone speech
            yield path.stem.rpartition("_desc_")[2], read_speech(path).numpy()


def sound_catalogue(root: Path) -> Iterator[Clip]:
    """An OpenTTD sound catalogue (.cat): pairs (offset, size) as 32-bit little-endian numbers, as many as fit
    before the first offset; at each offset a title (length byte, text) and a RIFF file. The top bit of an
    offset is a flag.
    """
    for path in sorted(root.rglob("*.cat")):
        content = path.read_bytes()
        count = (struct.unpack_from("<I", content)[0] & 0x7FFFFFFF) // 8
        for offset, size in struct.iter_unpack("<II", content[: 8 * count]):
            offset &= 0x7FFFFFFF
            start = offset + 1 + content[offset]
            title = content[offset + 1 : start].decode(errors="replace")
            samples, rate = soundfile.read(io.BytesIO(content[start : start + size]), dtype="float32")
            if not len(samples):  # the catalogue fills unused places with empty sounds
                continue
            # Several sounds are cut from the same recording: that recording is the origin.
            recording = re.search(r'Original "([^"]+)"', title)
            yield (
                recording[1] if recording else title,
                resample(torch.from_numpy(samples), rate, SAMPLE_RATE).numpy(),
            )
