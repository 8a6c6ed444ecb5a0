"""Runs that are killed, stopped, or short of disk: nothing is lost, and what follows is what would have been."""

import errno
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch
from made_audio import changed, data_arguments
from subprocesses import ENVIRONMENT, HERE

from abckd_dns import files
from abckd_dns.cli import main
from abckd_dns.data import mixtures as data
from abckd_dns.errors import InputError
from abckd_dns.files import write_atomically
from abckd_dns.training.runs import is_finished
from abckd_dns.training.states import States

STEPS = 24


def arguments(folders, out, *more: str) -> list[str]:
    shape = f"--steps {STEPS} --batch-size 2 --segment-seconds 0.2 --workers 0 --log-every 3 --save-every 3".split()
    own = ["train", "--preset", "own_networks:random", "--out", str(out), *data_arguments(folders), *shape]
    return changed(own, *more)


def weights(run):
    return safetensors.torch.load_file(run / "model.safetensors")


def states(run) -> list[int]:
    return sorted(int(path.stem) for path in (run / "state").glob("*.pt"))


def stop_at_example(monkeypatch, index: int, action) -> None:
    """Call `action` when example `index` is made for the first time."""
    make, pending = data.Mixtures.__getitem__, [index]

    def interrupted(self, i):
        if i in pending:
            pending.remove(i)
            action()
        return make(self, i)

    monkeypatch.setattr(data.Mixtures, "__getitem__", interrupted)


@pytest.fixture(scope="module")
def unbroken(folders, tmp_path_factory):
    """The weights of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("unbroken")
    torch.set_num_threads(1)
    main(arguments(folders, out))
    assert is_finished(out) and states(out) == [STEPS]
    return weights(out)


def assert_same(run, unbroken) -> None:
    assert is_finished(run)
    for name, value in weights(run).items():
        assert torch.equal(value, unbroken[name]), name


def test_killed_run_ends_as_the_unbroken_one(folders, unbroken, tmp_path, capsys):
    command = [sys.executable, "-m", "abckd_dns", *arguments(folders, tmp_path)]
    process = subprocess.Popen(command, cwd=HERE, env=ENVIRONMENT)
    try:
        deadline = time.monotonic() + 100
        while not states(tmp_path):
            assert process.poll() is None and time.monotonic() < deadline, "the run ended, or saved nothing"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert states(tmp_path) and not is_finished(tmp_path)
    main(arguments(folders, tmp_path))
    assert "continues after step" in capsys.readouterr().out
    assert_same(tmp_path, unbroken)


class Killed(BaseException):
    """Nothing of the program runs after it."""


def kill(*_):
    raise Killed


def test_run_killed_after_its_last_state_ends_as_the_unbroken_one(folders, unbroken, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(States, "keep_last", kill)
        with pytest.raises(Killed):
            main(arguments(folders, tmp_path))
    (tmp_path / "finished.json").unlink()
    assert states(tmp_path)[-1] == STEPS
    main(arguments(folders, tmp_path))
    assert_same(tmp_path, unbroken)
    assert states(tmp_path) == [STEPS]


def test_what_a_kill_left_unfinished_is_removed_at_the_end(folders, unbroken, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "000000007.pt.unfinished").touch()  # of a signal's state; no later one has its name
    main(arguments(folders, tmp_path))
    assert_same(tmp_path, unbroken)
    assert [path.name for path in (tmp_path / "state").iterdir()] == [f"{STEPS:09}.pt"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_exits(folders, unbroken, tmp_path, capsys, monkeypatch, number):
    before = signal.getsignal(number)
    stop_at_example(monkeypatch, 10, lambda: os.kill(os.getpid(), number))  # in step 6 of batches of 2
    with pytest.raises(SystemExit) as stopped:
        main(arguments(folders, tmp_path, "--save-every", "100"))
    assert stopped.value.code == 128 + number
    assert f"stopped by {number.name} after step 6 of {STEPS}" in capsys.readouterr().err
    assert signal.getsignal(number) is before
    assert states(tmp_path) == [6]
    made = []
    stop_at_example(monkeypatch, 12, lambda: made.append(12))
    stop_at_example(monkeypatch, 11, lambda: made.append(11))
    main(arguments(folders, tmp_path, "--save-every", "7"))
    assert made == [12]  # what was learned from is not made again
    assert_same(tmp_path, unbroken)


def test_signal_to_the_workers_too(folders, unbroken, tmp_path, monkeypatch):
    """As a scheduler sends it; examples are made in a worker, ahead of the step that needs them."""

    def everywhere():
        os.kill(os.getppid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    stop_at_example(monkeypatch, 16, everywhere)
    with pytest.raises(SystemExit) as stopped:
        main(arguments(folders, tmp_path, "--workers", "1", "--save-every", "100"))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert len(states(tmp_path)) == 1
    monkeypatch.undo()
    main(arguments(folders, tmp_path, "--workers", "1"))
    assert_same(tmp_path, unbroken)


def test_workers_end_with_a_run_that_failed(folders, tmp_path, monkeypatch):
    stop_at_example(monkeypatch, 6, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError) as failed:
        main(arguments(folders, tmp_path, "--workers", "2"))
    for worker in multiprocessing.active_children():  # what the interpreter does at its end, without a time limit
        worker.terminate()
        worker.join(timeout=10)
        assert not worker.is_alive()
    del failed


def test_second_signal_acts_at_once(folders, tmp_path, monkeypatch):
    def twice():  # raise_signal returns when the signal was received; of two by os.kill one may be lost
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    stop_at_example(monkeypatch, 3, twice)
    with pytest.raises(SystemExit) as stopped:
        main(arguments(folders, tmp_path))
    signal.signal(signal.SIGINT, before)
    assert stopped.value.code == 128 + signal.SIGINT and states(tmp_path) == []


@pytest.mark.parametrize("remaining", [1000, 0])
def test_unreadable_state_falls_back_to_the_one_before(folders, unbroken, tmp_path, monkeypatch, remaining):
    stop_at_example(monkeypatch, 2 * 14, kill)
    with pytest.raises(Killed):
        main(arguments(folders, tmp_path))
    assert states(tmp_path) == [9, 12]  # the last two
    newest = tmp_path / "state" / "000000012.pt"
    newest.write_bytes(newest.read_bytes()[:remaining])
    with pytest.warns(UserWarning, match="000000012.pt cannot be read, the state before it is taken"):
        assert States(tmp_path).newest()["step"] == 9
        main(arguments(folders, tmp_path))
    assert_same(tmp_path, unbroken)


def test_states_run_no_code(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "broken_into"),)

    (tmp_path / "state").mkdir()
    torch.save({"step": 1, "learned": Malicious()}, tmp_path / "state" / "000000001.pt")
    with pytest.warns(UserWarning, match="cannot be read"):
        assert States(tmp_path).newest() is None
    assert not (tmp_path / "broken_into").exists()


def test_finished_run_returns_at_once(folders, unbroken, tmp_path, capsys, monkeypatch):
    main(arguments(folders, tmp_path))
    monkeypatch.setattr("abckd_dns.training.supervised.fit", None)
    main(arguments(folders, tmp_path, "--workers", "1", "--log-every", "5"))
    assert f"{tmp_path} is finished: {STEPS} steps are done" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="holds a run with another --lr: 0.002 there, 0.1 here"):
        main(arguments(folders, tmp_path, "--lr", "0.1"))
    with pytest.raises(SystemExit, match="another --"):
        main(["distill", "--teacher", str(tmp_path), *arguments(folders, tmp_path)[3:]])


def test_run_that_saved_nothing_may_be_begun_anew(folders, tmp_path, monkeypatch):
    stop_at_example(monkeypatch, 2, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(arguments(folders, tmp_path))
    main(arguments(folders, tmp_path, "--lr", "0.1"))
    assert json.loads((tmp_path / "config.json").read_text())["lr"] == 0.1


def test_full_disk_leaves_the_state_before(folders, unbroken, tmp_path, monkeypatch):
    def full(path):
        if path.name.startswith("000000009"):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(path)

    sync = files._sync
    with monkeypatch.context() as patch:
        patch.setattr(files, "_sync", full)
        with pytest.raises(SystemExit, match=r"cannot write .*000000009.pt: .*No space left.* saved before is whole"):
            main(arguments(folders, tmp_path))
    assert states(tmp_path) == [3, 6]
    assert not list(tmp_path.rglob("*.unfinished"))
    main(arguments(folders, tmp_path))
    assert_same(tmp_path, unbroken)


def test_file_that_outgrows_the_disk(tmp_path):
    path = tmp_path / "numbers"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        tensors = {"a": torch.zeros(10_000)}
        for write in (
            lambda unfinished: unfinished.write_bytes(bytes(10_000)),
            lambda unfinished: safetensors.torch.save_file(tensors, unfinished),
        ):
            with pytest.raises(InputError, match="cannot write .*numbers"):
                write_atomically(path, write)
        with pytest.raises(InputError, match="cannot write .*000000001.pt"):
            States(tmp_path).save(1, tensors)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["numbers", "state"]


def test_out_that_cannot_be_made(folders, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="cannot write .*file/run"):
        main(arguments(folders, tmp_path / "file" / "run"))
