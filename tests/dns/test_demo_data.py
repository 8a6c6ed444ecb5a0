"""fetch-demo-data on a system without apt, and with programs that stand in for apt-get and dpkg-deb."""

import json
import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from made_audio import noise_like, speech_like, write_wav

from abckd_dns import demo_data
from abckd_dns.cli import main
from abckd_dns.errors import InputError

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


@pytest.fixture
def system(tmp_path, monkeypatch) -> Path:
    """Stand-ins for the two programs, and package trees in trees/; returns the folder of all."""
    trees, programs = tmp_path / "trees", tmp_path / "bin"
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
    for tree in trees.iterdir():
        (tree / "usr/share/doc" / tree.name).mkdir(parents=True)
        (tree / "usr/share/doc" / tree.name / "copyright").write_text(f"terms of {tree.name}")
    programs.mkdir()
    found = f"test -d {trees}/$2 && touch $2_1.6_all.deb"
    script(programs / "apt-get", f'echo "$@" >> {tmp_path}/calls; test $1 = update || {{ {found}; }}')
    script(programs / "dpkg-deb", f'cp -r {trees}/"${{2%%_*}}"/. "$3"')
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def calls(system: Path) -> list[str]:
    return (system / "calls").read_text().splitlines()


def test_makes_the_cache_once(system, capsys):
    main(["fetch-demo-data"])
    folder = Path(capsys.readouterr().out.strip())
    assert folder == system / "cache" / "abckd_dns" / "demo"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert len(manifest["sources"]) == 7 and manifest["skipped"] == []
    assert {source["version"] for source in manifest["sources"]} == {"1.6"}
    assert all(source["licence"].startswith("CC-BY") for source in manifest["sources"])
    assert (folder / "licences" / "minetest-data").read_text() == "terms of minetest-data"
    for split in ("train/speech", "train/noise", "test/speech", "test/noise"):
        files = list((folder / split).glob("*.flac"))
        assert files
        assert {soundfile.info(file).samplerate for file in files} == {16_000}
    assert os.listdir(folder.parent) == ["demo"]  # nothing unfinished is left

    asked = len(calls(system))
    main(["fetch-demo-data"])
    assert len(calls(system)) == asked


def test_speakers_and_noises_of_the_test_are_not_trained_on(system):
    folder = demo_data.fetch_demo_data()
    speakers = {part: {p.name for p in (folder / part / "speech").iterdir()} for part in ("train", "test")}
    assert speakers["test"] == {"asterisk-core-sounds-fr-g722-000.flac"}
    assert speakers["train"].isdisjoint(speakers["test"]) and len(speakers["train"]) == 3
    package = next(package for package in demo_data.PACKAGES if package.name == "openttd-opensfx")
    origins = [origin for origin, _ in package.clips(system / "trees" / package.name)]
    assert sorted(set(origins)) == [f"r{i}.wav" for i in range(6)] and len(origins) == 12
    assert {package.is_test(origin) for origin in origins} == {True, False}


def test_silence_and_signals_are_left_out(system):
    folder = demo_data.fetch_demo_data()
    speech, _ = soundfile.read(folder / "train/speech/asterisk-core-sounds-en-g722-000.flac")
    assert 1.5 < len(speech) / 16_000 <= 3.3  # hello and 1, without the silence and the beep
    assert 20 * np.log10(np.sqrt(np.mean(speech**2))) == pytest.approx(-26, abs=1.5)


def test_damaged_cache_is_made_again(system):
    folder = demo_data.fetch_demo_data()
    lost = next((folder / "train" / "noise").iterdir())
    lost.unlink()
    assert demo_data.fetch_demo_data() == folder
    assert lost.exists()


def test_interrupted_work_leaves_no_cache(system, monkeypatch):
    monkeypatch.setattr(demo_data.soundfile, "write", lambda *arguments, **keywords: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        demo_data.fetch_demo_data()
    assert os.listdir(system / "cache" / "abckd_dns") == []


def test_missing_package_is_said_and_recorded(system):
    (system / "trees" / "minetest-data").rename(system / "gone")
    with pytest.warns(UserWarning, match="without minetest-data: apt-get download minetest-data failed"):
        folder = demo_data.fetch_demo_data()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [entry["package"] for entry in manifest["skipped"]] == ["minetest-data"]


@pytest.mark.filterwarnings("ignore")
def test_missing_test_speaker_is_an_error(system):
    (system / "trees" / "asterisk-core-sounds-fr-g722").rename(system / "gone")
    with pytest.raises(InputError, match="no demo data for test/speech .asterisk-core-sounds-fr-g722"):
        demo_data.fetch_demo_data()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("user", "updates"), [(0, 1), (1000, 0)])
def test_only_root_gets_package_lists_and_once(system, monkeypatch, user, updates):
    for tree in (system / "trees").iterdir():
        tree.rename(system / tree.name)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(InputError, match="sudo apt-get update.*--clean FOLDER"):
        demo_data.fetch_demo_data()
    assert calls(system).count("update") == updates


def test_package_that_appears_with_new_lists_is_used(system, monkeypatch):
    tree = system / "trees" / "asterisk-core-sounds-en-g722"
    tree.rename(system / "hidden")
    found = f"test -d {system}/trees/$2 && touch $2_1.6_all.deb"
    appears = f"mv {system}/hidden {tree}"
    script(system / "bin" / "apt-get", f"if [ $1 = update ]; then {appears}; else {found}; fi")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    folder = demo_data.fetch_demo_data()
    assert len(json.loads((folder / "manifest.json").read_text())["sources"]) == 7


@pytest.mark.parametrize("missing", ["apt-get", "dpkg-deb"])
def test_without_apt_says_which_folders_to_give(system, monkeypatch, missing):
    monkeypatch.setattr(demo_data.shutil, "which", lambda program: None if program == missing else program)
    for command in ("fetch-demo-data", "demo"):
        with pytest.raises(SystemExit, match=f"{missing} is not on this system.*--clean FOLDER --noise FOLDER"):
            main([command])


def test_g722_is_decoded(tmp_path):
    time = np.arange(16_000) / 16_000
    write_g722(tmp_path / "tone.g722", 0.5 * np.sin(2 * np.pi * 440 * time))
    samples = demo_data._decode_g722(tmp_path / "tone.g722")
    assert len(samples) == pytest.approx(16_000, abs=200)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    assert spectrum.argmax() * 16_000 / len(samples) == pytest.approx(440, abs=2)
    assert np.abs(samples[2_000:-2_000]).max() == pytest.approx(0.5, abs=0.05)
