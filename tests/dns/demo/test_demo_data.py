"""fetch-demo-data on a system without apt, and with programs that stand in for apt-get and dpkg-deb."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from made_packages import script, write_g722

from abckd_dns.cli import main
from abckd_dns.demo import data as demo_data
from abckd_dns.demo import packages as package_audio
from abckd_dns.errors import InputError


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
    package = next(package for package in demo_data.DEMO.packages if package.name == "openttd-opensfx")
    origins = [origin for origin, _ in package.clips(system / "trees" / package.name)]
    assert sorted(set(origins)) == [f"r{i}.wav" for i in range(6)] and len(origins) == 12
    assert {package.place(origin).partition("/")[0] for origin in origins} == {"train", "test"}


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
    monkeypatch.setattr(package_audio.soundfile, "write", lambda *arguments, **keywords: 1 / 0)
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
    monkeypatch.setattr(package_audio.shutil, "which", lambda program: None if program == missing else program)
    for command in ("fetch-demo-data", "demo"):
        with pytest.raises(SystemExit, match=f"{missing} is not on this system.*--clean FOLDER --noise FOLDER"):
            main([command])


def test_g722_is_decoded(tmp_path):
    time = np.arange(16_000) / 16_000
    write_g722(tmp_path / "tone.g722", 0.5 * np.sin(2 * np.pi * 440 * time))
    samples = package_audio.decode_g722(tmp_path / "tone.g722")
    assert len(samples) == pytest.approx(16_000, abs=200)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    assert spectrum.argmax() * 16_000 / len(samples) == pytest.approx(440, abs=2)
    assert np.abs(samples[2_000:-2_000]).max() == pytest.approx(0.5, abs=0.05)
