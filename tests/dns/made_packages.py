"""Made-up Debian packages, and programs that stand in for apt-get and dpkg-deb."""

import struct
from pathlib import Path

import av
import numpy as np
import soundfile
from made_audio import noise_like, speech_like, write_wav

VOICES = {"en": "en_US_f_Allison", "fr": "fr_CA_f_June", "it": "it_IT_m_Carlo", "ru": "ru_RU_f_Ivrvoice"}


def write_g722(path: Path, samples: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16_000, layout="mono")
        pcm = (samples * 2**15).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def write_catalogue(path: Path, sounds: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table, body = b"", b""
    for title, samples in sounds.items():
        soundfile.write(path.with_suffix(".wav"), samples, 22_050)
        riff = path.with_suffix(".wav").read_bytes()
        path.with_suffix(".wav").unlink()
        offset = 8 * len(sounds) + len(body)
        table += struct.pack("<II", offset | 0x80000000, len(riff))
        body += bytes([len(title)]) + title.encode() + riff + b"\0"
    path.write_bytes(table + body)


def demo_trees(trees: Path) -> None:
    """What the packages of the demo hold."""
    for language, voice in VOICES.items():
        sounds = trees / f"asterisk-core-sounds-{language}-g722" / "usr/share/asterisk/sounds" / voice
        write_g722(sounds / "hello.g722", 0.2 * speech_like(2, len(voice)))
        write_g722(sounds / "digits" / "1.g722", speech_like(1, 3))
        write_g722(sounds / "silence" / "1.g722", np.zeros(16_000))
        write_g722(sounds / "beep.g722", 0.9 * np.ones(16_000))
    for artist in ("manolo_camp", "macroform"):
        path = trees / "asterisk-moh-opsound-g722/usr/share/asterisk/moh" / f"{artist}-title.g722"
        write_g722(path, noise_like(2, 5))
    recordings = [f'"Sound {i}". Original "r{i // 2}.wav" by "x".' for i in range(12)]
    catalogue = {title: noise_like(0.5, i, 22_050) for i, title in enumerate(recordings)}
    write_catalogue(trees / "openttd-opensfx/usr/share/x/opensfx.cat", catalogue | {"Unused": np.zeros(0)})
    for index in range(8):
        write_wav(trees / "minetest-data/usr/share/x" / f"step{index}.1.ogg", noise_like(0.3, index))


def study_trees(trees: Path) -> None:
    """What the packages of the study hold besides those of the demo."""
    sounds = trees / "asterisk-core-sounds-es-g722/usr/share/asterisk/sounds/es_MX_f_Allison"
    write_g722(sounds / "hello.g722", 0.2 * speech_like(2, 1))
    stamps = trees / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps/animals"
    for seed, language in enumerate("es ru ro fr bg el be ca da lt nl".split()):
        write_wav(stamps / f"cat_desc_{language}.ogg", speech_like(1.5, seed, 44_100), 44_100)
    write_wav(stamps / "dog_desc_ca.ogg", speech_like(9, 1, 8_000), 8_000)
    write_wav(stamps / "cat.ogg", noise_like(1, 1))
    for package in ("lincity-ng-data", "widelands-data", "wesnoth-1.16-data", "searchandrescue-data"):
        write_wav(trees / package / "usr/share/games/sounds/fire.wav", noise_like(2, 1, 11_025), 11_025)
        (trees / package / "usr/share/games/music").mkdir(parents=True)
        (trees / package / "usr/share/games/music/tune.wav").write_bytes(b"MThd")


def make_system(folder: Path) -> None:
    """Copyright files for the packages in folder/trees, and in folder/bin the programs that get packages from there."""
    trees, programs = folder / "trees", folder / "bin"
    for tree in trees.iterdir():
        (tree / "usr/share/doc" / tree.name).mkdir(parents=True, exist_ok=True)
        (tree / "usr/share/doc" / tree.name / "copyright").write_text(f"terms of {tree.name}")
    programs.mkdir(exist_ok=True)
    found = f"test -d {trees}/$2 && touch $2_1.6_all.deb"
    script(programs / "apt-get", f'echo "$@" >> {folder}/calls; test $1 = update || {{ {found}; }}')
    script(programs / "dpkg-deb", f'cp -r {trees}/"${{2%%_*}}"/. "$3"')


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
