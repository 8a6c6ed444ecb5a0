"""The demo's speech and noise: speakers and noises of its test part are not in its training part."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from ..options import FetchDemoDataOptions
from .packages import Collection, Package, fetch, game_sounds, hold_music, prompts, sound_catalogue

_TEST_SPEAKER = "fr_CA_f_June"
_TEST_ARTIST = "manolo_camp"


def fetch_demo_data() -> Path:
    """Make the demo's cache unless it is there and complete; returns its folder."""
    return fetch(DEMO)


def print_demo_data(_: FetchDemoDataOptions) -> None:
    """The command `fetch-demo-data`."""
    print(fetch_demo_data())


def _split(kind: str, package: str, is_test: Callable[[str], bool]) -> Callable[[str], str]:
    return lambda origin: f"{'test' if is_test(origin) else 'train'}/{kind}/{package}"


def _every_fourth(origin: str) -> bool:
    return hashlib.sha256(origin.encode()).digest()[0] % 4 == 0


def _prompt_package(language: str, licence: str) -> Package:
    name = f"asterisk-core-sounds-{language}-g722"
    return Package(name, licence, prompts, _split("speech", name, lambda speaker: speaker == _TEST_SPEAKER), 20)


def _noise_package(name, licence, clips, is_test, piece_seconds) -> Package:
    return Package(name, licence, clips, _split("noise", name, is_test), piece_seconds)


# The licences are those of the Debian copyright files, which the cache keeps in licences/.
DEMO = Collection(
    name="demo",
    version=1,
    parts=("train", "test"),
    packages=(
        _prompt_package("en", "CC-BY-SA-3.0"),
        _prompt_package("fr", "CC-BY-SA-3.0"),
        _prompt_package("it", "CC-BY-3.0"),
        _prompt_package("ru", "CC-BY-3.0"),
        _noise_package("openttd-opensfx", "CC-BY-SA-3.0", sound_catalogue, _every_fourth, 4),
        _noise_package("minetest-data", "CC-BY-SA-3.0; doors: CC-BY-3.0", game_sounds, _every_fourth, 4),
        _noise_package(
            "asterisk-moh-opsound-g722", "CC-BY-SA-3.0", hold_music, lambda artist: artist == _TEST_ARTIST, 20
        ),
    ),
    instead="give folders of your own recordings: --clean FOLDER --noise FOLDER (wav, flac, ogg, ...)",
)
