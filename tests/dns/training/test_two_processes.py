"""Two processes learn what one does with the same batches, and a run of two is stopped and resumed as one."""

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from accelerate.state import AcceleratorState
from made_audio import data_arguments
from pages import indented
from subprocesses import ENVIRONMENT, HERE
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from abckd_dns.cli import main
from abckd_dns.data import mixtures as data

# sp relates the samples of the whole batch, whichever process has them. No batch normalisation: its statistics are
# those of one process.
COMMAND = (
    "distill --teacher own_networks:large --student own_networks:small --loss sp=1 at=1 --seed 1 "
    "--student-layers features --teacher-layers features --segment-seconds 0.3 --workers 0 --log-every 1"
).split()


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


# As docs/training.md has them. On a machine without GPUs --multi_gpu means several CPU processes.
LAUNCHERS = {
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port PORT --num_machines 1 "
    "--mixed_precision no --dynamo_backend no",
    "torchrun": "torch.distributed.run --nproc-per-node 2 --master-port PORT",
}


def run_by(launcher: str, arguments: list[str]) -> int:
    """The exit code of two processes that a launcher starts."""
    launch = LAUNCHERS[launcher].replace("PORT", free_port()).split()
    environment = {**ENVIRONMENT, "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", *launch, "-m", "abckd_dns", *arguments]
    return subprocess.run(command, cwd=HERE, env=environment, start_new_session=True, timeout=200).returncode


def losses(run) -> dict[int, float]:
    log = EventAccumulator(str(next(run.rglob("events.out.*")).parent)).Reload()
    return {event.step: event.value for event in log.Scalars("loss")}


@pytest.fixture(scope="module")
def of_one(folders, tmp_path_factory):
    """The run of one process."""
    out = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(HERE)
        main([*COMMAND, *data_arguments(folders), "--steps", "5", "--out", str(out), "--batch-size", "4"])
    return out


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_learn_what_one_does(folders, of_one, tmp_path, launcher):
    shared = [*COMMAND, *data_arguments(folders), "--steps", "5"]
    assert run_by(launcher, [*shared, "--out", str(tmp_path), "--batch-size", "2"]) == 0
    one, two = losses(of_one), losses(tmp_path)
    assert one.keys() == two.keys() == set(range(1, 6))
    # Sums of floats in another order, five AdamW steps long.
    assert [two[step] for step in two] == pytest.approx([one[step] for step in two], rel=1e-4)
    one, two = (safetensors.torch.load_file(run / "model.safetensors") for run in (of_one, tmp_path))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)


def test_the_launchers_are_those_of_the_documentation():
    written = {re.search(r"accelerate|torchrun", line)[0] for line in indented("docs/training.md", ".*-m abckd_dns")}
    assert written == LAUNCHERS.keys()


def one_of_two(rank: int, port: str, index: int | None, arguments: list[str]) -> None:
    """Process `rank` of two; it gets SIGTERM when it makes example `index`."""
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, ACCELERATE_USE_CPU="true")
    make = data.Mixtures.__getitem__

    def interrupted(self, i):
        if i == index:
            os.kill(os.getpid(), signal.SIGTERM)
        return make(self, i)

    data.Mixtures.__getitem__ = interrupted
    main(arguments)


def forked(arguments: list[str], index: int | None = None) -> list[int]:
    """Exit codes of two processes, forked from one that imports everything once and never computes.

    Autograd's threads do not survive a fork: a process in which a test has run a backward pass must not be forked.
    """
    context, port = multiprocessing.get_context("forkserver"), free_port()
    context.set_forkserver_preload(["abckd_dns.training.distillation", "torch._dynamo", "torch.utils.tensorboard"])
    both = [context.Process(target=one_of_two, args=(rank, port, index, arguments)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=100)
        process.kill()
        process.join()
    return [process.exitcode for process in both]


def test_signal_to_one_process_stops_both_and_they_resume(folders, tmp_path):
    shared = [*COMMAND, *data_arguments(folders), "--steps", "8", "--batch-size", "2", "--log-every", "2"]
    shared += ["--student", "own_networks:random", "--student-layers", "features.0"]  # draws random numbers
    assert forked([*shared, "--out", str(tmp_path / "unbroken")]) == [0, 0]
    out = ["--out", str(tmp_path / "run")]
    # Example 10 is made by process 1 for step 3; they agree at step 4, when values are read anyway.
    assert forked([*shared, *out], index=10) == [128 + signal.SIGTERM] * 2
    (state,) = (tmp_path / "run" / "state").glob("*.pt")
    assert state.stem == "000000004"
    with pytest.raises(SystemExit, match="holds a run of 2 processes, which 1 cannot continue"):
        main([*shared, *out])
    assert forked([*shared, *out]) == [0, 0]
    unbroken, run = (safetensors.torch.load_file(tmp_path / x / "model.safetensors") for x in ("unbroken", "run"))
    assert all(torch.equal(run[name], value) for name, value in unbroken.items())
