"""Steps that are left out without a trace."""

import json

import own_networks
import pytest
import safetensors.torch
import torch
from made_audio import SHORT, changed, data_arguments

from abckd_dns.cli import main
from abckd_dns.training.safeguards import StepGuard
from abckd_dns.training.supervised import Supervised


def everything(system, optimizer):
    of_optimizer = [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    return [value.clone() for value in (*system.state_dict().values(), *of_optimizer)]


@pytest.mark.parametrize("poison", ["input", "gradient", "loss"])
def test_skipped_step_leaves_no_trace(poison):
    torch.manual_seed(0)
    system = Supervised(own_networks.tiny())
    optimizer = torch.optim.AdamW(system.parameters(), lr=1e-2, fused=True)
    guard = StepGuard(system, optimizer, torch.device("cpu"))

    def step(poisoned: bool) -> bool:
        batch = {name: 0.1 * torch.randn(2, 4_000) for name in ("noisy", "clean")}
        if poisoned and poison == "input":
            batch["noisy"][0, 7] = float("inf")
        guard.before_step()
        loss = system(batch)["loss"]
        if poisoned and poison == "loss":
            loss = loss + torch.tensor(float("inf"))  # its gradient is finite
        guard.spread(loss).backward()
        if poisoned and poison == "gradient":
            system.network.mask.bias.grad[0] = float("nan")
        good = guard.judge(torch.nn.utils.clip_grad_norm_(system.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad()
        return bool(good)

    assert step(False)
    before = everything(system, optimizer)
    assert not step(True) and not step(True)
    assert guard.read() == (2, 2)
    assert all(torch.equal(a, b) for a, b in zip(everything(system, optimizer), before, strict=True))
    assert step(False)
    assert guard.read() == (2, 0)
    assert all(value.isfinite().all() for value in everything(system, optimizer))
    assert not torch.equal(system.network.mask.weight, before[list(system.state_dict()).index("network.mask.weight")])


def test_skipped_steps_are_counted_and_the_run_goes_on(folders, tmp_path, monkeypatch):
    forward, calls = Supervised.forward, []

    def sometimes_nan(self, batch):
        calls.append(1)
        outputs = forward(self, batch)
        return {"loss": outputs["loss"] * float("nan")} if len(calls) in (2, 3, 5) else outputs

    monkeypatch.setattr(Supervised, "forward", sometimes_nan)
    start = ["train", "--preset", "own_networks:tiny", "--out", str(tmp_path), *data_arguments(folders), *SHORT]
    main(changed(start, "--steps", "6", "--max-skipped", "3"))
    assert json.loads((tmp_path / "finished.json").read_text()) == {"steps": 6, "skipped": 3}
    trained = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert all(value.isfinite().all() for value in trained.values())
