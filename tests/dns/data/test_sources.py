"""Folders and tar shards, and the memory of what is in them."""

import io
import os
import tarfile

import numpy as np
import pytest
import soundfile
import torch
from made_audio import noise_like, speech_like, write_wav

from abckd_dns.data import sources
from abckd_dns.data.audio import read_speech
from abckd_dns.data.mixtures import Mixtures, SegmentPool
from abckd_dns.data.sources import find_sources, list_audio
from abckd_dns.errors import InputError
from abckd_dns.files import printable
from abckd_dns.options import MixtureOptions


def write_shard(path, count: int, first_seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for index in range(count):
            content = io.BytesIO()
            soundfile.write(content, speech_like(0.5, first_seed + index), 16_000, format="WAV")
            for name, data in ((f"{index:05}.wav", content.getvalue()), (f"{index:05}.json", b"{}")):
                member = tarfile.TarInfo(f"speech/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def read(monkeypatch):
    """The shards that were read, and not found in the cache."""
    names, original = [], sources._read_shard
    monkeypatch.setattr(
        sources, "_read_shard", lambda path, argument: names.append(os.path.basename(path)) or original(path, argument)
    )
    return names


def test_shards_are_remembered_and_changes_are_noticed(tmp_path, read):
    root = tmp_path / "root"
    for name in ("a/1.wav", "a/2.FLAC", "b/c/3.ogg", "b/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    write_shard(root / "b" / "x.tar", 2)
    write_shard(root / "b" / "y.tar", 1)
    first = find_sources(root, "--clean")
    assert read == ["x.tar", "y.tar"]
    assert [str(source).removeprefix(f"{root}/") for source in first] == [
        *("a/1.wav", "a/2.FLAC", "b/c/3.ogg"),
        *("b/x.tar/speech/00000.wav", "b/x.tar/speech/00001.wav", "b/y.tar/speech/00000.wav"),
    ]
    read.clear()
    assert find_sources(root, "--clean") == first and read == []

    (root / "b" / "c" / "4.wav").touch()
    (root / "a" / "1.wav").unlink()
    write_shard(root / "b" / "x.tar", 3)
    again = find_sources(root, "--clean")
    assert read == ["x.tar"]
    assert len(again) == 7 and str(root / "b" / "c" / "4.wav") in again and str(root / "a" / "1.wav") not in again


def test_shard_written_anew_in_the_same_size_is_read_again(tmp_path, read):
    write_shard(tmp_path / "x.tar", 2)
    find_sources(tmp_path / "x.tar", "--clean")
    before = (tmp_path / "x.tar").stat()
    write_shard(tmp_path / "x.tar", 2, first_seed=5)
    os.utime(tmp_path / "x.tar", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    find_sources(tmp_path / "x.tar", "--clean")
    assert read == ["x.tar"] * 2


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"stamp": 1}'])
def test_broken_or_unwritable_memory_does_no_harm(tmp_path, monkeypatch, content):
    write_shard(tmp_path / "data" / "x.tar", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    find_sources(tmp_path / "data", "--clean")
    (cache,) = (tmp_path / "cache").rglob("*.json")
    cache.write_text(content)
    assert len(find_sources(tmp_path / "data", "--clean")) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "data" / "x.tar"))
    assert len(find_sources(tmp_path / "data", "--clean")) == 2


def test_links_are_followed_once(tmp_path):
    write_wav(tmp_path / "elsewhere" / "1.wav", speech_like(0.1, 0))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "there").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "up").symlink_to(tmp_path / "root")
    assert find_sources(tmp_path / "root", "--clean") == [str(tmp_path / "root" / "there" / "1.wav")]


def test_a_folder_is_listed_under_its_own_name_rather_than_a_link(tmp_path):
    write_wav(tmp_path / "z" / "1.wav", speech_like(0.1, 0))
    (tmp_path / "a").symlink_to(tmp_path / "z")
    assert list_audio(tmp_path, "--input") == [str(tmp_path / "z" / "1.wav")]


def test_what_is_passed_over(tmp_path, capsys):
    for name in ("a.wav", "B.WAV", "c/d.m4a", "._a.wav", ".hidden/e.wav", "f.txt", "g.txt", "h.xyz", "out/i.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.wav")  # reading it would wait for ever
    found = [os.path.relpath(path, tmp_path) for path in list_audio(tmp_path, "--input", leave_out=tmp_path / "out")]
    assert found == ["B.WAV", "a.wav", "c/d.m4a"]
    said = capsys.readouterr().err
    assert "--input: 3 files" in said
    assert all(part in said for part in ("passed over: 2 .txt", "1 .xyz", "1 no file"))


def test_hidden_members_of_shards_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("speech/._1.wav", "speech/1.wav"):
            archive.addfile(tarfile.TarInfo(name))
    assert [member.name for member in find_sources(tmp_path, "--clean")] == ["speech/1.wav"]


def test_several_places_hold_every_file_once(tmp_path):
    for name in ("a/1.wav", "a/deep/2.wav", "b/1.wav"):
        write_wav(tmp_path / name, speech_like(0.1, 0))
    places = [tmp_path / "a" / "deep", tmp_path / "a", tmp_path / "b"]
    found = [os.path.relpath(path, tmp_path) for path in find_sources(places, "--clean")]
    assert found == ["a/deep/2.wav", "a/1.wav", "b/1.wav"]


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    write_wav(tmp_path / "a.wav", speech_like(0.5, 0))
    os.rename(tmp_path / "a.wav", name)
    (path,) = list_audio(tmp_path, "--input")
    assert os.fsencode(path) == name
    assert len(read_speech(path)) == 8_000
    assert printable(path).endswith("caf\\xe9.wav")


def test_shards_hold_the_same_examples_as_files(tmp_path):
    write_shard(tmp_path / "shards" / "speech-000.tar", 2)
    write_shard(tmp_path / "shards" / "speech-001.tar", 1, first_seed=2)
    for index in range(3):
        write_wav(tmp_path / "files" / f"{index}.wav", speech_like(0.5, index))
        write_wav(tmp_path / "noise" / f"{index}.wav", noise_like(0.5, index))
    as_files = mixtures(tmp_path / "files", tmp_path / "noise")
    for place in ("shards", "shards/speech-{000..001}.tar"):
        as_shards = mixtures(tmp_path / place, tmp_path / "noise")
        for index in range(8):
            assert torch.equal(as_shards[index]["noisy"], as_files[index]["noisy"])


def mixtures(clean, noise):
    return Mixtures(MixtureOptions(clean=clean, noise=noise), length=4_000, count=8, seed=0)


def test_member_reads_no_further_than_its_end(tmp_path):
    write_shard(tmp_path / "x.tar", 2)
    member = find_sources(tmp_path / "x.tar", "--clean")[0]
    content = member.open().read()
    assert content[:4] == b"RIFF" and len(content) == member.size
    samples, _ = soundfile.read(member.open())
    np.testing.assert_allclose(samples, speech_like(0.5, 0), atol=1e-4)


def test_damaged_member_is_reported_by_name(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo("bad.wav")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"nope"))
    pool = SegmentPool(tmp_path / "x.tar", "--clean", max_corrupt=0.5)
    with pytest.warns(UserWarning), pytest.raises(InputError, match="1 of 1 files .*cannot read .*x.tar/bad.wav"):
        pool.draw(100, np.random.default_rng(0))


def test_shards_that_are_none(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"x" * 1000)
    with pytest.raises(InputError, match="--clean: .*x.tar is not a whole, uncompressed tar archive"):
        find_sources(tmp_path, "--clean")
    with pytest.raises(InputError, match="--noise: the shard .*y-1.tar does not exist"):
        find_sources(tmp_path / "y-{1..3}.tar", "--noise")
    with pytest.raises(InputError, match="--noise: .* is not a folder"):
        find_sources(tmp_path / "y.wav", "--noise")


def test_very_long_file_is_not_read_whole(tmp_path, monkeypatch):
    """Ten hours would take gigabytes; the file is sparse, its header is all that is there."""
    path = write_wav(tmp_path / "long.wav", noise_like(0.01, 0))
    seconds = 36_000
    with path.open("r+b") as file:
        size = seconds * 16_000 * 2
        file.seek(4)
        file.write((36 + size).to_bytes(4, "little"))
        file.seek(40)
        file.write(size.to_bytes(4, "little"))
        file.truncate(44 + size)
    read = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda self, frames, **more: read.append(frames) or original(self, frames, **more)
    )
    segment = SegmentPool(tmp_path, "--clean", 0.1).draw(8_000, np.random.default_rng(0), min_level=-1000)
    assert segment.shape == (8_000,) and read == [8_000]
