"""Real speech and noise for the demo, out of Debian packages: got, decoded, split and cached.

The cache is one folder: {train,test}/{speech,noise}/*.flac (16 kHz, mono), licences/, and manifest.json,
which lists every file and the source, version and licence of every package. Speakers and noises of the test
part are not in the training part. Nothing of the audio belongs to this project: redistribute it only under
its own licences.
"""

from __future__ import annotations

import hashlib
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

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from .audio import read_speech, resample
from .errors import InputError
from .stft import SAMPLE_RATE

_LAYOUT_VERSION = 1  # part of the manifest: a cache of another version is made anew
_SPLITS = ("train/speech", "train/noise", "test/speech", "test/noise")

Clip = tuple[str, np.ndarray]  # where it comes from (one speaker, one recording), and its samples at 16 kHz


@dataclass(frozen=True)
class Package:
    """A Debian package and what to take from it. `clips` gets the folder into which it was unpacked."""

    name: str
    licence: str
    kind: str  # "speech" or "noise"
    clips: Callable[[Path], Iterator[Clip]]
    is_test: Callable[[str], bool]  # by the origin of a clip
    piece_seconds: float  # clips are joined to files of about this length


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "abckd_dns", "demo")


def fetch_demo_data(folder: Path | None = None) -> Path:
    """Make the cache unless it is there and complete; returns its folder."""
    folder = folder or cache_folder()
    if _is_complete(folder):
        return folder
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise InputError(
                f"the demo data come from Debian packages, and {program} is not on this system; give folders "
                "of your own recordings instead: --clean FOLDER --noise FOLDER (wav, flac, ogg, ...)"
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unfinished-") as temporary:
        made = Path(temporary, "demo")
        _make(made, Path(temporary))
        shutil.rmtree(folder, ignore_errors=True)  # of another version, or damaged
        made.rename(folder)
    return folder


def _is_complete(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return manifest["layout_version"] == _LAYOUT_VERSION and all(
            (folder / name).stat().st_size == size for name, size in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _make(folder: Path, workplace: Path) -> None:
    for name in (*_SPLITS, "licences"):
        (folder / name).mkdir(parents=True)
    sources, skipped = [], []
    may_update = os.geteuid() == 0  # only root may get package lists, which a fresh container lacks
    for package in tqdm(PACKAGES, desc="demo data", unit="package"):
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
            # A distribution may lack one of the packages: the others can still make a demo.
            warnings.warn(f"demo data without {package.name}: {error}", stacklevel=2)
            skipped.append({"package": package.name, "reason": str(error)})
            continue
        finally:
            shutil.rmtree(unpacked)
        sources.append({"package": package.name, "version": version, "licence": package.licence, "seconds": seconds})
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*.flac"))}
    for split in _SPLITS:
        if not any(name.startswith(split) for name in files):
            reasons = "; ".join(f"{entry['package']}: {entry['reason']}" for entry in skipped)
            raise InputError(
                f"no demo data for {split} ({reasons}); sudo apt-get update may help; "
                "or give folders of your own recordings: --clean FOLDER --noise FOLDER"
            )
    manifest = {"layout_version": _LAYOUT_VERSION, "sources": sources, "skipped": skipped, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _download(name: str, folder: Path) -> str:
    """Unpack the Debian package `name` into `folder`; returns its version."""
    _run("apt-get", "download", name, folder=folder)
    archive = next(folder.glob("*.deb")).name
    _run("dpkg-deb", "-x", archive, ".", folder=folder)
    return archive.split("_")[1]


def _run(*command: str, folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{' '.join(command)} failed: {done.stderr.strip() or f'exit {done.returncode}'}")


def _write_pieces(package: Package, unpacked: Path, folder: Path) -> dict[str, float]:
    """Join the clips of each origin to files of useful length; returns the seconds per split."""
    clips_of = defaultdict(list)
    for origin, samples in package.clips(unpacked):
        samples = _squeeze_silence(samples)
        if len(samples):
            clips_of["test" if package.is_test(origin) else "train"].append(_equalise(samples))
    if not clips_of:
        raise InputError(f"{package.name} has no usable audio")
    seconds = {}
    for part, clips in clips_of.items():
        samples = np.concatenate(clips)
        count = max(1, round(len(samples) / SAMPLE_RATE / package.piece_seconds))
        for index, piece in enumerate(np.array_split(samples, count)):
            path = folder / part / package.kind / f"{package.name}-{index:03}.flac"
            soundfile.write(path, piece, SAMPLE_RATE, subtype="PCM_16")
        seconds[f"{part}/{package.kind}"] = round(len(samples) / SAMPLE_RATE, 1)
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


def _prompts(root: Path) -> Iterator[Clip]:
    """Telephone prompts: .../sounds/<language>_<country>_<sex>_<speaker>/**.g722."""
    not_speech = {"beep", "beeperr", "ascending-2tone", "descending-2tone", "tt-monkeys"}
    for path in sorted(root.glob("usr/share/asterisk/sounds/*/**/*.g722")):
        if path.stem not in not_speech:
            yield path.relative_to(root).parts[4], _decode_g722(path)


def _hold_music(root: Path) -> Iterator[Clip]:
    """Music on hold: .../moh/<artist>-<title>.g722."""
    for path in sorted(root.glob("usr/share/asterisk/moh/*.g722")):
        yield path.stem.split("-")[0], _decode_g722(path)


def _decode_g722(path: Path) -> np.ndarray:
    import av  # only this function needs it

    with av.open(str(path), format="g722") as container:
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return np.concatenate(frames).astype(np.float32) / 2**15 if frames else np.zeros(0, np.float32)


def _game_sounds(root: Path) -> Iterator[Clip]:
    """Ogg files; variants of a sound differ by a number: fire_fire.1.ogg, fire_fire.2.ogg."""
    for path in sorted(root.rglob("*.ogg")):
        yield path.stem.split(".")[0], read_speech(path).numpy()


def _sound_catalogue(root: Path) -> Iterator[Clip]:
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


def _every_fourth(origin: str) -> bool:
    return hashlib.sha256(origin.encode()).digest()[0] % 4 == 0


_TEST_SPEAKER = "fr_CA_f_June"
_TEST_ARTIST = "manolo_camp"


def _prompt_package(language: str, licence: str) -> Package:
    name = f"asterisk-core-sounds-{language}-g722"
    return Package(name, licence, "speech", _prompts, lambda speaker: speaker == _TEST_SPEAKER, 20)


# The licences are those of the Debian copyright files, which the cache keeps in licences/.
PACKAGES = (
    _prompt_package("en", "CC-BY-SA-3.0"),
    _prompt_package("fr", "CC-BY-SA-3.0"),
    _prompt_package("it", "CC-BY-3.0"),
    _prompt_package("ru", "CC-BY-3.0"),
    Package("openttd-opensfx", "CC-BY-SA-3.0", "noise", _sound_catalogue, _every_fourth, 4),
    Package("minetest-data", "CC-BY-SA-3.0; doors: CC-BY-3.0", "noise", _game_sounds, _every_fourth, 4),
    Package(
        "asterisk-moh-opsound-g722",
        "CC-BY-SA-3.0",
        "noise",
        _hold_music,
        lambda artist: artist == _TEST_ARTIST,
        20,
    ),
)
