"""The code of the pages 'Your network' and 'Your trainer' runs, with random weights."""

import importlib
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import abckd_kernels
from abckd_kernels import distill, losses

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page):
    found = re.findall(r"<!-- needs:(.*?)-->\n```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert len(found) == (DOCS / page).read_text().count("```python")
    return [pytest.param(needs.split(), code, id=code.split("\n")[0][:40]) for needs, code in found]


def names():
    """What the pages' code finds: the library, and what it needs of the packages that it names."""
    found = {"torch": torch, "nn": nn, "F": F, "backend": "aot_eager"}
    for module in (abckd_kernels, losses, distill):
        found |= {name: getattr(module, name) for name in module.__all__}
    found["get_ema_multi_avg_fn"] = torch.optim.swa_utils.get_ema_multi_avg_fn
    return found


def of_packages(needs):
    found = {}
    for package in needs:
        module = found[package] = pytest.importorskip(package)
        if package == "transformers":
            kinds = ("BertConfig", "BertForSequenceClassification", "WhisperConfig", "WhisperModel", "Wav2Vec2Config")
            found |= {name: getattr(module, name) for name in (*kinds, "Wav2Vec2Model")}
        if package == "torchaudio":
            found["ConvTasNet"] = importlib.import_module("torchaudio.models").ConvTasNet
    return found


@pytest.mark.parametrize(("needs", "code"), blocks("networks.md"))
@pytest.mark.filterwarnings("error:.*axes are read as")
def test_networks(needs, code):
    torch.manual_seed(0)
    given = dict(
        images=torch.randn(2, 3, 64, 64), labels=torch.tensor([0, 1]), tokens=torch.randint(100, (2, 7)),
        waveforms=torch.randn(2, 4000),
    )  # fmt: skip
    space = names() | of_packages(needs) | given
    exec(code, space)
    if "output" in space:
        loss = space["output"].loss
        assert loss.isfinite() and loss > 0
        if "backward()" not in code:
            loss.backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in space["distiller"].student.parameters())


def made(width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10)),
    )  # fmt: skip


def training(folder):
    torch.manual_seed(0)
    batches = [(torch.randn(4, 3, 16, 16), torch.randint(10, (4,))) for _ in range(2)]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    given = dict(student=made(8), teacher=made(16), layers=["0", "2"], batches=batches, loader=loader, folder=folder)
    return names() | given


def with_berts(transformers):
    def bert(width, layers):
        config = transformers.BertConfig(
            vocab_size=100, num_hidden_layers=layers, hidden_size=width, num_attention_heads=2, intermediate_size=32
        )
        return transformers.BertForSequenceClassification(config)

    texts = [{"input_ids": torch.randint(100, (9,)), "labels": torch.tensor(k % 2)} for k in range(4)]
    quick = dict(use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", num_train_epochs=1)
    return dict(bert=bert(16, 2), large_bert=bert(24, 4), texts=texts, quick=quick)


@pytest.mark.parametrize(("needs", "code"), blocks("trainers.md"))
def test_trainers(needs, code, tmp_path):
    torch.compiler.reset()
    if needs == ["two", "processes"]:
        torch.multiprocessing.spawn(in_two_processes, (code, tmp_path), nprocs=2)
        return
    space = training(tmp_path) | of_packages(needs)
    if "transformers" in needs:
        space |= with_berts(space["transformers"])
    exec(code, space)


def in_two_processes(rank, code, folder):
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    exec(code, training(folder) | {"fully_shard": fully_shard})
    dist.destroy_process_group()
