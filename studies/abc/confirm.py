"""The confirmation set: speech and noise out of Debian packages that no run, grid or choice has seen.

Nothing here scores anything. Definition and manifest (confirmation.json) may still be amended; a commit that says so
freezes them before the first and only scoring of a chosen loss. Until then nobody listens, looks or scores.

Speech: an hour and a half of read Russian sentences (a man who is in no other package), and letters, syllables and
words in languages of which train, dev and test have nothing. The three packages of Asterisk prompts that come to mind
(es-co, fr-armelle, it-menardi) hold telephone speech, 8 kHz, and are of no use to wideband PESQ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import soundfile

from .package import (
    SAMPLE_RATE,
    Clip,
    Collection,
    InputError,
    MixtureOptions,
    Mixtures,
    Package,
    fetch,
    game_sounds,
    read_manifest,
    read_speech,
)

PART = "confirmation"
COUNT, SECONDS, SEED = 400, 4.0, 54321
MANIFEST = Path(__file__).with_name("confirmation.json")

# None of train (en, es, it, ru, bg, be, da, lt), dev (ro, ca) or test (fr, el).
_LETTERS = ("ml", "hu", "ar", "uk", "pt_BR", "nds", "nl", "de", "he", "cs", "tn", "nb")
_WORDS = ("nn", "uk", "gl", "wa", "sl", "de")


def _recordings(root: Path, pattern: str, language_at: int) -> Iterator[Clip]:
    """Recordings of at least 16 kHz; the origin is the language, or the voice, which the path names."""
    for path in sorted(root.glob(pattern)):
        if path.suffix in (".wav", ".ogg", ".opus") and soundfile.info(path).samplerate >= SAMPLE_RATE:
            yield path.relative_to(root).parts[language_at], read_speech(path).numpy()


def _speech(name: str, licence: str, pattern: str, language_at: int, languages: tuple[str, ...]) -> Package:
    def place(language: str) -> str | None:
        return f"{PART}/speech/{name}-{language}" if language in languages else None

    return Package(name, licence, partial(_recordings, pattern=pattern, language_at=language_at), place, 20)


def _noise(name: str, licence: str, clips: Callable[[Path], Iterator[Clip]] = game_sounds) -> Package:
    return Package(name, licence, clips, lambda _: f"{PART}/noise/{name}", 4)


def _effects(root: Path) -> Iterator[Clip]:
    """Sounds of a game whose music lies among them."""
    return (clip for clip in game_sounds(root) if "music" not in clip[0].lower())


# The licences are those of the Debian copyright files, which the cache keeps in licences/.
CONFIRMATION = Collection(
    name="confirmation",
    version=1,
    parts=(PART,),
    packages=(
        _speech(
            "festvox-ru",
            "BSD-like (see licences/)",
            "usr/share/festival/voices/russian/msu_ru_nsh_clunits/wav/*",
            5,
            ("msu_ru_nsh_clunits",),
        ),
        _speech("klettres-data", "GPL-2+", "usr/share/klettres/*/*/*", 3, _LETTERS),
        _speech("ktuberling-data", "GPL-2+", "usr/share/ktuberling/sounds/*/*", 4, _WORDS),
        _noise("lugaru-data", "CC-BY-SA-3.0 and others (see licences/)", _effects),
        _noise("scorched3d-data", "GPL-2+"),
        _noise("hedgewars-data", "GPL-2 and others (see licences/)"),
        _noise("warmux-data", "GPL-2+"),
    ),
    instead="there is no substitute: the set is what it is",
)


def mixtures() -> Mixtures:
    """The set; for the one scoring of a frozen definition."""
    folder = fetch(CONFIRMATION) / PART
    options = MixtureOptions(clean=folder / "speech", noise=folder / "noise", snr=(-5.0, 15.0))
    return Mixtures(options, round(SECONDS * SAMPLE_RATE), COUNT, SEED)


def summary() -> dict:
    """Versions of the packages and seconds of each place."""
    manifest = read_manifest(fetch(CONFIRMATION))
    if manifest["skipped"]:
        raise InputError(f"missing: {', '.join(entry['package'] for entry in manifest['skipped'])}")
    return {
        "count": COUNT,
        "seconds_each": SECONDS,
        "seed": SEED,
        "packages": {
            source["package"]: {"version": source["version"], "seconds": source["seconds"]}
            for source in manifest["sources"]
        },
    }


def check() -> str:
    """Raises InputError where what was fetched is not what the manifest says; the first time it is written."""
    found = summary()
    if not MANIFEST.exists():
        MANIFEST.write_text(json.dumps(found, indent=2) + "\n")
        return f"written: {MANIFEST.name}"
    wanted = json.loads(MANIFEST.read_text())
    if found != wanted:
        raise InputError(f"the confirmation data are not those of {MANIFEST.name}: {json.dumps(found)}")
    return "the confirmation data are those of the manifest; nothing was scored"
