"""fetch-study-data: what is on which side, and what the manifest says of it."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
from made_packages import make_system, study_trees

from abckd_dns.cli import main
from abckd_dns.study.data import STUDY, fetch_study_data

PARTS = ("train", "dev", "test")


@pytest.fixture
def study_system(system) -> Path:
    study_trees(system / "trees")
    make_system(system)
    return system


def test_no_speaker_language_or_noise_package_is_on_two_sides(study_system):
    folder = fetch_study_data()
    assert folder == study_system / "cache" / "abckd_dns" / "study"
    sides_of = defaultdict(set)
    origins = defaultdict(set)
    for package in STUDY.packages:
        for origin, _ in package.clips(study_system / "trees" / package.name):
            place = package.place(origin)
            if place is None:
                continue
            part, kind, name = place.split("/")
            origins[kind].add(origin)
            assert (folder / f"{place}-000.flac").exists()
            if kind == "noise":
                sides_of[package.name].add(part)
            else:  # a prompt's origin is language_country_sex_speaker
                sides_of["language " + origin.partition("_")[0]].add(part)
                sides_of["speaker " + origin.rpartition("_")[2]].add(part)
    assert {name: sides for name, sides in sides_of.items() if len(sides) != 1} == {}
    assert {"en_US_f_Allison", "es_MX_f_Allison", "fr_CA_f_June", "el", "ro"} <= origins["speech"]
    assert "nl" not in origins["speech"]  # seconds only
    for part in PARTS:
        for kind in ("speech", "noise"):
            assert list((folder / part / kind).glob("*.flac"))


def test_telephone_speech_and_music_are_left_out(study_system):
    folder = fetch_study_data()
    seconds = {}
    for source in json.loads((folder / "manifest.json").read_text())["sources"]:
        seconds |= source["seconds"]
    assert 0.5 < seconds["dev/speech/tuxpaint-stamps-default-ca"] <= 1.6  # not the 9 s at 8 kHz
    # The music there cannot be decoded: it was not looked at.
    assert seconds["test/noise/searchandrescue-data"] == pytest.approx(2, abs=0.1)


def test_missing_package_is_recorded_and_printed(study_system, capsys):
    (study_system / "trees" / "widelands-data").rename(study_system / "gone")
    with pytest.warns(UserWarning, match="study data without widelands-data"):
        main(["fetch-study-data"])
    printed = capsys.readouterr().out
    assert "missing: widelands-data (apt-get download widelands-data failed" in printed
    assert "train/speech/tuxpaint-stamps-default-es" in printed
    folder = Path(printed.splitlines()[0])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [entry["package"] for entry in manifest["skipped"]] == ["widelands-data"]
