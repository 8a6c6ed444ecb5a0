"""The study's speech and noise: no language, so no speaker, and no noise package is in two of train, dev and test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..demo.packages import (
    Collection,
    Package,
    fetch,
    game_sounds,
    hold_music,
    prompts,
    read_manifest,
    sound_catalogue,
    spoken_stamps,
)
from ..errors import InputError
from ..options import FetchStudyDataOptions
from .config import Config

# English and Spanish prompts are one speaker. A language of the stamps is one speaker, for most of it; between
# languages they differ by the names in the changelog.
LANGUAGE_PARTS = {
    **dict.fromkeys(("en", "es", "it", "ru", "bg", "be", "da", "lt"), "train"),
    **dict.fromkeys(("ro", "ca"), "dev"),
    **dict.fromkeys(("fr", "el"), "test"),
}


def fetch_study_data() -> Path:
    """Make the study's cache unless it is there and complete; returns its folder."""
    return fetch(STUDY)


def print_study_data(_: FetchStudyDataOptions) -> None:
    """The command `fetch-study-data`."""
    folder = fetch_study_data()
    print(f"{folder}\n{format_minutes(folder)}")


def data_folder(config: Config) -> Path:
    """With train/, dev/ and test/, each with speech/ and noise/."""
    if config.data.folder is None:
        return fetch_study_data()
    for part in STUDY.parts:
        for kind in ("speech", "noise"):
            if not (config.data.folder / part / kind).is_dir():
                raise InputError(f"--config: data.folder: expected a folder {part}/{kind} in {config.data.folder}")
    return config.data.folder


def format_minutes(folder: Path) -> str:
    """The minutes of each part and package (and language), and the packages that are missing."""
    manifest = read_manifest(folder)
    rows = sorted(row for source in manifest["sources"] for row in source["seconds"].items())
    totals: dict[str, float] = {}
    for place, seconds in rows:
        split = place.rpartition("/")[0]
        totals[split] = totals.get(split, 0) + seconds
    lines = [f"{seconds / 60:7.1f} min  {place}" for place, seconds in [*rows, *totals.items()]]
    lines += [f"missing: {entry['package']} ({entry['reason']})" for entry in manifest["skipped"]]
    return "\n".join(lines)


def _prompt_package(language: str, licence: str) -> Package:
    name = f"asterisk-core-sounds-{language}-g722"
    return Package(name, licence, prompts, lambda _: f"{LANGUAGE_PARTS[language]}/speech/{name}", 20)


def _stamps() -> Package:
    name = "tuxpaint-stamps-default"

    def place(language: str) -> str | None:
        part = LANGUAGE_PARTS.get(language)  # the other languages have seconds, or several speakers
        return part and f"{part}/speech/{name}-{language}"

    return Package(name, "GPL-2", spoken_stamps, place, 20)


def _noise_package(
    name: str, licence: str, part: str, clips: Callable = game_sounds, piece_seconds: int = 4
) -> Package:
    return Package(name, licence, clips, lambda _: f"{part}/noise/{name}", piece_seconds)


# The licences are those of the Debian copyright files, which the cache keeps in licences/.
STUDY = Collection(
    name="study",
    version=1,
    parts=("train", "dev", "test"),
    packages=(
        _prompt_package("en", "CC-BY-SA-3.0"),
        _prompt_package("es", "CC-BY-SA-3.0"),
        _prompt_package("fr", "CC-BY-SA-3.0"),
        _prompt_package("it", "CC-BY-3.0"),
        _prompt_package("ru", "CC-BY-3.0"),
        _stamps(),
        _noise_package("asterisk-moh-opsound-g722", "CC-BY-SA-3.0", "train", hold_music, 20),
        _noise_package("openttd-opensfx", "CC-BY-SA-3.0", "train", sound_catalogue),
        _noise_package("lincity-ng-data", "GPL-2+", "train"),
        _noise_package("widelands-data", "GPL-2+", "train"),
        _noise_package("wesnoth-1.16-data", "GPL-2+", "dev"),
        _noise_package("minetest-data", "CC-BY-SA-3.0; doors: CC-BY-3.0", "test"),
        _noise_package("searchandrescue-data", "GPL", "test"),
    ),
    instead="name folders of your own in the study's configuration (data.folder)",
)
