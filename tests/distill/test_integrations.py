"""A Distiller in what people train with: the step there is the plain step."""

import copy
import socket
import traceback

import pytest
import torch
import torch.distributed as dist
from made_distillers import LAYERS, Network, X
from torch import nn

from abckd_kernels import ABCLoss, Distiller, abc_loss
from abckd_kernels.distill import Term
from abckd_kernels.losses import ATLoss, HintLoss, SPLoss

LOSSES = {
    "abc": lambda: ABCLoss([3, 6], [5, 10], dim=4),
    "abc_loss": lambda: abc_loss,
    "hint": lambda: HintLoss([3, 6], [5, 10]),
    "sp": SPLoss,
}


class Quiet(Network):
    """Without batch normalisation, whose statistics are those of each process."""

    def __init__(self, channels):
        super().__init__(channels)
        for block in self.encoder:
            block.norm = nn.Identity()
        self.unused = None


def made(loss="abc", network=Quiet):
    torch.manual_seed(0)
    return Distiller(network(3), network(5), LAYERS, LAYERS, LOSSES[loss]())


def total(output):
    return output.loss + output.student.square().mean()


def trained(distiller, run=None, steps=2, x=X):
    """Parameters after some steps of `run`, which is the distiller or what wraps it."""
    optimizer = torch.optim.SGD(distiller.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        total((distiller if run is None else run)(x)).backward()
        optimizer.step()
    return {name: p.detach() for name, p in distiller.named_parameters()}


def assert_equal(ours, right, **tolerance):
    assert ours.keys() == right.keys()
    for name, p in ours.items():
        torch.testing.assert_close(p, right[name], **(tolerance or dict(rtol=1e-4, atol=1e-6)))


# ---------------------------------------------------------------------------------------------- torch.compile, AMP


@pytest.mark.parametrize("loss", LOSSES)
def test_compiled_whole_step(loss):
    torch.compiler.reset()
    distiller = made(loss)
    right = trained(copy.deepcopy(distiller))
    compiled = torch.compile(lambda x: total(distiller(x)), fullgraph=True, backend="aot_eager")
    optimizer = torch.optim.SGD(distiller.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        compiled(X).backward()
        optimizer.step()
    assert_equal(dict(distiller.named_parameters()), right)


def test_compiled_with_several_terms_views_and_a_layer_in_place():
    class Tokens(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first, self.act, self.last = nn.Linear(5, width), nn.ReLU(inplace=True), nn.Linear(width, 2)

        def forward(self, x):
            return self.last(self.act(self.first(x)))

    torch.compiler.reset()
    torch.manual_seed(0)
    terms = [
        Term(["first@btc"], ["first@btc"], ATLoss()),
        Term(["act@in@btc", "last"], ["act@in@btc", "last"], SPLoss(), weight=0.5),
    ]
    distiller, x = Distiller(Tokens(8), Tokens(12), terms=terms), torch.randn(3, 7, 5)
    right = trained(copy.deepcopy(distiller), x=x)
    compiled = torch.compile(distiller, fullgraph=True, backend="aot_eager")
    assert_equal(trained(distiller, compiled, x=x), right)


@pytest.mark.parametrize("loss", LOSSES)
def test_amp_and_channels_last(loss):
    distiller = made(loss)
    right = trained(copy.deepcopy(distiller))

    def run(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return distiller(x.to(memory_format=torch.channels_last))

    assert_equal(trained(distiller, run), right, rtol=0.1, atol=0.03)


# ---------------------------------------------------------------------------------------------- two processes

BATCH = torch.cat([X, 2 * X.flip(0)])


def whole(parameters):
    return {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in parameters.items()}


def in_ddp(rank):
    for loss in ("abc", "hint"):
        distiller = made(loss)
        right = trained(copy.deepcopy(distiller), x=BATCH)
        parallel = nn.parallel.DistributedDataParallel(distiller)
        assert_equal(trained(distiller, parallel, x=BATCH.chunk(2)[rank]), right)
        assert not [name for name in parallel.state_dict() if "teacher" in name]


def in_fsdp(rank):
    from torch.distributed.fsdp import fully_shard

    # What a loss learns is averaged only where it is sharded, too, so not with the student alone.
    for loss, what in (("abc_loss", "student"), ("abc", "teacher"), ("abc_loss", "both"), ("hint", "whole")):
        distiller = made(loss)
        right = trained(copy.deepcopy(distiller), x=BATCH)
        sharded = {"both": [distiller.student, distiller.teacher]}.get(what, [getattr(distiller, what, distiller)])
        for network in sharded:
            for block in getattr(network, "student", network).encoder:
                fully_shard(block)
            fully_shard(network)
        ours = trained(distiller, x=BATCH if what == "teacher" else BATCH.chunk(2)[rank])
        assert_equal(whole(ours), right)


def in_fsdp_with_checkpoints(rank):
    from torch.distributed.fsdp import fully_shard
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, x):
            return checkpoint(self.block, x, use_reentrant=False)

    distiller = made("abc_loss")
    right = trained(copy.deepcopy(distiller), x=BATCH)
    for index, block in enumerate(distiller.student.encoder):
        distiller.student.encoder[index] = fully_shard(Checkpointed(block))
    fully_shard(distiller.student)
    ours = trained(distiller, x=BATCH.chunk(2)[rank])
    assert_equal({name.replace("block.", ""): p for name, p in whole(ours).items()}, right)


def in_fsdp_with_mixed_precision(rank):
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    distiller = made("abc_loss")
    right = trained(copy.deepcopy(distiller), x=BATCH)
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for network in (distiller.student, distiller.teacher):
        for block in network.encoder:
            fully_shard(block, mp_policy=half)
        fully_shard(network, mp_policy=half)
    ours = trained(distiller, x=BATCH.chunk(2)[rank])
    assert_equal(whole(ours), right, rtol=0.1, atol=0.03)


def with_tensor_parallel(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def net(width):
        return nn.Sequential(nn.Linear(5, width), nn.GELU(), nn.Linear(width, 2))

    torch.manual_seed(0)
    student, teacher, x = net(8), net(12), torch.randn(3, 7, 5)
    distiller = Distiller(student, teacher, ["0@btc"], ["0@btc"], ATLoss())
    right = trained(copy.deepcopy(distiller), x=x)
    mesh = init_device_mesh("cpu", (2,))
    plan = {"0": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False), "2": RowwiseParallel()}
    parallelize_module(student, mesh, plan)
    ours = trained(distiller, x=x)
    assert_equal(whole(ours), right)


IN_TWO = (in_ddp, in_fsdp, in_fsdp_with_checkpoints, in_fsdp_with_mixed_precision, with_tensor_parallel)


def _process(rank, port, folder):
    """Everything that needs two processes, in the same two: what went wrong is written down by name."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for function in IN_TWO:
        try:
            function(rank)
            said = ""
        except Exception:
            said = traceback.format_exc()
        (folder / f"{function.__name__}.{rank}").write_text(said)
        if said:
            return  # the other process waits for this one, and is ended
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("two")
    try:
        torch.multiprocessing.spawn(_process, (port, folder), nprocs=2)
    except torch.multiprocessing.ProcessExitedException:
        pass
    return folder


@pytest.mark.parametrize("function", IN_TWO, ids=lambda function: function.__name__)
def test_in_two_processes(two_processes, function):
    files = [two_processes / f"{function.__name__}.{rank}" for rank in range(2)]
    said = [file.read_text() if file.exists() else "did not end" for file in files]
    assert said == ["", ""], "\n".join(said)


# ---------------------------------------------------------------------------------------------- trainers


class Examples(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        x = torch.randn(1, 8, 6, generator=torch.Generator().manual_seed(index))
        return {"x": x}


def plain_training(distiller, batches):
    optimizer = torch.optim.SGD(distiller.parameters(), 0.1)
    for batch in batches:
        optimizer.zero_grad()
        total(distiller(**batch)).backward()
        optimizer.step()
    return {name: p.detach() for name, p in distiller.named_parameters()}


def loader():
    return torch.utils.data.DataLoader(Examples(), 4)


def test_accelerate(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    distiller = made()
    right = plain_training(copy.deepcopy(distiller), loader())
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = torch.optim.SGD(distiller.parameters(), 0.1)
    model, optimizer, batches = accelerator.prepare(distiller, optimizer, loader())
    for batch in batches:
        optimizer.zero_grad()
        accelerator.backward(total(model(**batch)))
        optimizer.step()
    assert_equal({name: p.detach() for name, p in accelerator.unwrap_model(model).named_parameters()}, right)
    accelerator.save_state(str(tmp_path))
    accelerator.load_state(str(tmp_path))


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")

    class System(lightning.LightningModule):
        def __init__(self, distiller):
            super().__init__()
            self.distiller = distiller

        def training_step(self, batch, index):
            return total(self.distiller(**batch))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    distiller = made()
    right = plain_training(copy.deepcopy(distiller), loader())
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", devices=1)
    trainer = lightning.Trainer(max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=False, **quiet)
    trainer.fit(System(distiller), loader())
    assert_equal({name: p.detach() for name, p in distiller.named_parameters()}, right)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=False)["state_dict"]
    assert {name.split(".")[1] for name in saved} == {"student", "loss"}
    System(made()).load_state_dict(saved)


def test_trainer_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")

    class Trainer(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **others):
            output = model(**inputs)
            return (total(output), output.student) if return_outputs else total(output)

    distiller = made()
    right = plain_training(copy.deepcopy(distiller), loader())
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, num_train_epochs=1, learning_rate=0.1, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=0.0, remove_unused_columns=False, report_to=[], use_cpu=True,
        disable_tqdm=True, save_strategy="no", dataloader_num_workers=0,
    )  # fmt: skip
    trainer = Trainer(distiller, arguments, train_dataset=Examples())
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(Examples())
    trainer.train()
    assert_equal({name: p.detach() for name, p in distiller.named_parameters()}, right)
    trainer.save_model(str(tmp_path / "model"))
    from safetensors.torch import load_file

    assert {name.split(".")[0] for name in load_file(tmp_path / "model" / "model.safetensors")} == {"student", "loss"}


def test_gradient_checkpointing_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    student, teacher = (transformers.BertModel(config, add_pooling_layer=False) for _ in range(2))
    tokens = torch.randint(50, (2, 9))
    names = ["encoder.layer.0.intermediate@btc", "encoder.layer.1.attention.output.dense@btc"]

    def gradients():
        distiller = Distiller(student.train(), teacher, names, names, ATLoss())
        distiller.zero_grad()
        output = distiller(input_ids=tokens)
        (output.student.last_hidden_state.square().mean() + 100 * output.loss).backward()
        return {name: p.grad.clone() for name, p in student.named_parameters()}

    right = gradients()
    for use_reentrant in (False, True):
        student.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        student.enable_input_require_grads()
        assert_equal(gradients(), right)
