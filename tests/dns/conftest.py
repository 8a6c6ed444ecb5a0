"""Tests of abckd_dns. They make all their audio; without the extra [dns] they are not collected."""

import os
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

_NEEDED = (
    *"accelerate av filelock matplotlib pesq pydantic pystoi".split(),
    *"safetensors scipy soundfile tensorboard torchaudio tyro".split(),
)
_MISSING = [name for name in _NEEDED if find_spec(name) is None]
if _MISSING:
    warnings.warn(f"tests/dns is not run: {', '.join(_MISSING)} not installed (extra [dns])", stacklevel=1)
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def _one_thread():
    """The networks are too small to gain from threads, which cost much where others use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """The user's cache folder is none of a test's business."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Path:
    """Folders of speech, noise, room responses and noisy speech, as `made_audio.write_folders` makes them."""
    from made_audio import write_folders

    return write_folders(tmp_path_factory.mktemp("audio"))


@pytest.fixture(scope="session")
def runs(folders, tmp_path_factory) -> Path:
    """A folder with teacher/, the run of a teacher that was trained for a few steps."""
    from made_audio import SHORT, data_arguments

    from abckd_dns.cli import main

    out = tmp_path_factory.mktemp("runs")
    main(["train", "--out", str(out / "teacher"), *data_arguments(folders), *SHORT])
    return out


@pytest.fixture
def system(tmp_path, monkeypatch) -> Path:
    """A folder with the packages of the demo in trees/ and the programs that get them from there first in PATH."""
    from made_packages import demo_trees, make_system

    demo_trees(tmp_path / "trees")
    make_system(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path
