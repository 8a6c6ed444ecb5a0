"""Cached teachers: what is written is what the teacher gives, and what is not right is an error that says so."""

import copy
import json
import pickle
import shutil
from collections import OrderedDict

import pytest
import torch
from pages import blocks
from torch import nn
from torch.utils.data import DataLoader, Dataset

from abckd_kernels import ABCLoss, Distiller, TeacherCache, cache, cache_teacher
from abckd_kernels.cache.fingerprints import fingerprints
from abckd_kernels.cache.manifest import CacheError
from abckd_kernels.distill import wanted_of
from abckd_kernels.losses import ATLoss, HintLoss, SPLoss, kl_loss, top_k

pytest.importorskip("safetensors")
LAYERS = ["0", "2"]
COUNT, SHARD = 11, 4


class Examples(Dataset):
    """Always the same ones; notes which were asked for."""

    def __init__(self, count=COUNT, seed=0, shape=(2, 8, 6)):
        self.inputs = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
        self.asked = []

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.inputs[index]


def network(width, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width),
        nn.Dropout(0.5), nn.Flatten(), nn.Linear(width * 48, 10),
    )  # fmt: skip


@pytest.fixture
def teacher():
    return network(5).eval()


@pytest.fixture
def data():
    return Examples()


def write(folder, teacher, data, layers=LAYERS, **options):
    return cache_teacher(folder, teacher, data, layers, **{"shard": SHARD, "batch_size": 3} | options)


LOSSES = {
    "abc": lambda: ABCLoss([3, 3], [5, 5]),
    "at": lambda: ATLoss(power=1),
    "hint": lambda: HintLoss([3, 3], [5, 5]),
    "sp": SPLoss,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kept", ["taps", "features"])
def test_a_step_is_that_with_the_teacher(name, kept, tmp_path, teacher, data):
    """Loss and gradients, for shuffled examples of several shards."""
    torch.manual_seed(1)
    loss = LOSSES[name]()
    if kept == "taps" and not hasattr(loss, "tap_options"):
        with pytest.raises(CacheError, match="expected a loss that needs attention maps alone.*taps=None"):
            Distiller(network(3), write(tmp_path, teacher, data), LAYERS, LAYERS, loss)
        return
    found = write(tmp_path, teacher, data, taps=loss if kept == "taps" else None, output=lambda y: y)
    student, results = network(3), []
    examples = torch.tensor([10, 0, 5, 3])
    for source, given in ((teacher, {}), (found, {"examples": examples})):
        with Distiller(student, source, LAYERS, LAYERS, loss) as distiller:
            torch.manual_seed(2)  # the student's dropout
            output = distiller.train()(data.inputs[examples], **given)
            parameters = [p for p in distiller.parameters() if p.requires_grad]
            grads = torch.autograd.grad(output.loss, parameters, allow_unused=True, materialize_grads=True)
            results.append((output.loss, *grads, output.teacher))
    torch.testing.assert_close(results[1], results[0])  # a convolution rounds otherwise in another batch
    assert any(g.abs().max() > 0 for g in results[0][1:-1])


def test_some_layers_of_those_that_were_cached(tmp_path, teacher, data):
    found = write(tmp_path, teacher, data)
    losses = []
    for source, given in ((teacher, {}), (found, {"examples": range(4)})):
        with Distiller(network(3).eval(), source, ["0"], ["2"], ATLoss()) as distiller:
            losses.append(distiller(data.inputs[:4], **given).loss)
    torch.testing.assert_close(*losses)


def test_rows_from_the_workers_of_a_loader_and_compiled(tmp_path, teacher, data):
    """Rows that a data set fetched, in a whole step without a break; a pickled cache opens its files again."""
    found = pickle.loads(pickle.dumps(write(tmp_path, teacher, data, output=lambda y: y)))

    class Both(Dataset):
        def __len__(self):
            return len(found)

        def __getitem__(self, index):
            return data.inputs[index], found[index]

    student = network(3).eval()
    with Distiller(student, found, LAYERS, LAYERS, ATLoss()) as distiller:
        compiled = torch.compile(distiller, fullgraph=True, backend="aot_eager")
        first = 0
        for x, rows in DataLoader(Both(), 4, num_workers=1):
            expected = distiller(x, examples=range(first, first + len(x)))
            first += len(x)
            for form in (distiller, compiled):
                output = form(x, examples=rows)
                torch.testing.assert_close(output.loss, expected.loss)
                torch.testing.assert_close(output.teacher, teacher(x))
    torch._dynamo.reset()


def test_the_teacher_is_left_as_it_was(tmp_path, teacher, data):
    teacher.train()
    teacher[3].eval()
    state, hooks = copy.deepcopy(teacher.state_dict()), len(teacher[0]._forward_hooks)
    write(tmp_path, teacher, data)
    assert teacher.training and not teacher[3].training and len(teacher[0]._forward_hooks) == hooks
    assert all(torch.equal(x, state[name]) for name, x in teacher.state_dict().items())
    assert all(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrower_dtypes(dtype, tmp_path, teacher, data):
    found = write(tmp_path, teacher, data, dtype=dtype)
    exact = write(tmp_path / "exact", teacher, data)
    rows, whole = found[:], exact[:]
    assert rows["maps.0"].dtype == dtype and len(found) == COUNT
    assert torch.equal(rows["maps.0"], whole["maps.0"].to(dtype))
    with Distiller(network(3), found, LAYERS, LAYERS, ATLoss()) as distiller:
        assert distiller(data.inputs[:3], examples=[0, 1, 2]).loss.dtype == torch.float32
    with torch.no_grad():
        teacher[0].weight.mul_(1e5)
    if dtype == torch.float16:
        with pytest.raises(CacheError, match="^dtype: maps of layer '0'.*float16 can't hold; bfloat16 can"):
            write(tmp_path / "large", teacher, data, dtype=dtype)


def test_outputs_in_every_form(tmp_path, teacher, data):
    inputs, examples = data.inputs, [7, 2, 9]
    forms = {
        "tensor": lambda y: y,
        "dict": lambda y: {"logits": y, "likeliest": y.argmax(1)},
        "top": lambda y: top_k(y, 3, temperature=2.0),
    }
    with torch.no_grad():
        logits = teacher(inputs[examples])
    for name, form in forms.items():
        found = write(tmp_path / name, teacher, data, layers=[], output=form)
        output = found.output(examples, inputs[examples])
        torch.testing.assert_close(output, form(logits))
    with pytest.raises(CacheError, match="is not example"):
        found.output(examples, inputs[:3])
    with pytest.raises(CacheError, match="expected an output, but none was kept"):
        write(tmp_path / "none", teacher, data).output(examples)
    losses = [kl_loss(torch.ones(3, 10), likeliest, temperature=2.0) for likeliest in (output, forms["top"](logits))]
    torch.testing.assert_close(*losses)


# ---------------------------------------------------------------------------------------------- interruptions, parts


def test_it_goes_on_where_it_was_interrupted(tmp_path, teacher, data, monkeypatch):
    """Nothing half-written has a shard's name; finished shards are not computed again."""
    written = []

    def fails(folder, index, *others):
        if len(written) == 1:
            (folder / "shard-00001.safetensors.7.part").write_bytes(b"half")
            raise OSError("no space left on device")
        written.append(index)
        original(folder, index, *others)

    original = cache.shards.write
    monkeypatch.setattr(cache.shards, "write", fails)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path, teacher, data)
    with pytest.raises(CacheError, match="expected 3 shards, got 1, without number 1; the same call of cache_teacher"):
        TeacherCache(tmp_path)
    monkeypatch.undo()
    before, data.asked = (tmp_path / "shard-00000.safetensors").stat().st_mtime_ns, []
    found = write(tmp_path, teacher, data)
    assert (tmp_path / "shard-00000.safetensors").stat().st_mtime_ns == before
    assert sorted(set(data.asked)) == [0, *range(4, COUNT)]  # and the first of what is there, to know the data set
    whole = write(tmp_path / "at once", teacher, data)
    assert all(torch.equal(x, whole[:][name]) for name, x in found[:].items())


def test_a_shard_that_was_interrupted_leaves_nothing(tmp_path, teacher, data, monkeypatch):
    monkeypatch.setattr(cache.shards.os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, teacher, data)
    assert [x.name for x in tmp_path.iterdir()] == ["manifest.json"]


def test_processes_write_one_cache_together(tmp_path, teacher, data):
    assert write(tmp_path, teacher, data, part=(1, 2)) is None
    assert [x.name for x in sorted(tmp_path.iterdir())] == ["manifest.json", "shard-00001.safetensors"]
    found = write(tmp_path, teacher, data, part=(0, 2))
    whole = write(tmp_path / "alone", teacher, data)
    assert all(torch.equal(x, whole[:][name]) for name, x in found[:].items())


# ---------------------------------------------------------------------------------------------- what is not right


def test_another_cache_in_the_folder(tmp_path, teacher, data):
    write(tmp_path, teacher, data)
    for wrong, word in (
        (lambda: write(tmp_path, network(5, seed=1).eval(), data), "teacher_hash"),
        (lambda: write(tmp_path, teacher, data, layers=["0"]), "layers"),
        (lambda: write(tmp_path, teacher, data, taps={"power": 1}), "tap"),
        (lambda: write(tmp_path, teacher, data, dtype=torch.bfloat16), "dtype"),
        (lambda: write(tmp_path, teacher, data, shard=5), "shard"),
        (lambda: write(tmp_path, teacher, Examples(12)), "count"),
    ):
        with pytest.raises(CacheError, match=f"begun with .*{word}.* now .*another folder"):
            wrong()
    with pytest.raises(CacheError, match="^dataset: expected .* example 0 is another one"):
        write(tmp_path, teacher, Examples(seed=1))


def test_another_teacher(tmp_path, teacher, data):
    write(tmp_path, teacher, data)
    assert len(TeacherCache(tmp_path, teacher=teacher)) == COUNT
    with torch.no_grad():
        teacher[0].bias[0] += 1e-6
    with pytest.raises(CacheError, match="^teacher: expected the Sequential that wrote .*, got a Sequential"):
        TeacherCache(tmp_path, teacher=teacher)


def test_other_examples(tmp_path, teacher, data):
    found = write(tmp_path, teacher, data)
    with Distiller(network(3), found, LAYERS, LAYERS, ATLoss()) as distiller:
        for inputs, examples in (
            (data.inputs[[0, 2]], [0, 1]),
            (data.inputs[:2].flip(-1), [0, 1]),
            (data.inputs[:2] + 1e-6, [0, 1]),
        ):
            with pytest.raises(CacheError, match="^examples: expected inputs that the teacher saw.* is not example"):
                distiller(inputs, examples=examples)
        with pytest.raises(CacheError, match="^examples: expected 2, one per input, got 3"):
            distiller(data.inputs[:2], examples=[0, 1, 2])
        for examples, error in (([0, 11], IndexError), ([-1, 0], IndexError), ([0.5, 1], TypeError), ("ab", TypeError),
                                (torch.tensor([True, False]), TypeError), ([[0], [1]], TypeError)):  # fmt: skip
            with pytest.raises(error, match="^examples: expected"):
                distiller(data.inputs[:2], examples=examples)
        with pytest.raises(CacheError, match="^examples: expected rows of .* no maps.0"):
            distiller(data.inputs[:2], examples={"inputs": torch.zeros(2)})
        with pytest.raises(CacheError, match="^examples: expected the positions"):
            distiller(data.inputs[:2])
        with pytest.raises(CacheError, match="^lengths: expected none"):
            distiller(data.inputs[:2], examples=[0, 1], lengths=torch.tensor([4, 8]), padded_length=8)
    trusting = TeacherCache(tmp_path, check_inputs=False)
    with Distiller(network(3), trusting, LAYERS, LAYERS, ATLoss()) as distiller:
        distiller(data.inputs[:2].flip(-1), examples=[0, 1])


def test_other_layers_and_options(tmp_path, teacher, data):
    found = write(tmp_path, teacher, data, layers=["0", "2@bchw"], taps={"power": 2, "means": False})
    for layers, options, said in (
        (["0", "3"], {"means": False}, r"teacher_layers\[1\] '3': expected one of 0, 2@bchw in the cache, got '3'"),
        (["0", "2"], {"means": False}, r"teacher_layers\[1\] '2': expected one of 0, 2@bchw in the cache, got '2'"),
        (["0"], {"power": 1, "means": False}, "teacher_layers.*: expected tap options .* as in the cache, got"),
        (["0"], {}, "teacher_layers.*: expected tap options .* as in the cache, got"),
    ):
        with pytest.raises(CacheError, match=f"^{said}"):
            found.bind(wanted_of(layers, "teacher_layers", options))
    found.bind(wanted_of(["0", "2@bchw"], "teacher_layers", {"means": False}))


def test_damaged_files(tmp_path, teacher, data):
    with pytest.raises(CacheError, match="expected a cache, but there is no manifest.json"):
        TeacherCache(tmp_path / "nothing")
    whole = tmp_path / "whole"
    write(whole, teacher, data)
    shard = "shard-00001.safetensors"

    def damaged(change):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        change(folder)
        return folder

    def cut(folder):
        (folder / shard).write_bytes((folder / shard).read_bytes()[:-100])

    def foreign(folder):
        shutil.copy(whole / "shard-00000.safetensors", folder / shard)
        write(folder / "other", network(5, seed=1).eval(), data)
        shutil.copy(folder / "other" / shard, folder / shard)

    for change, words in ((cut, "expected a whole shard"), (foreign, "belongs to another one")):
        found = TeacherCache(damaged(change))
        assert len(found[:4]["example"]) == 4  # others are as good as before
        with pytest.raises(CacheError, match=f"{shard}.*{words}.*delete it"):
            found[2:6]

    def without(folder):
        (folder / shard).unlink()

    with pytest.raises(CacheError, match="expected 3 shards, got 2, without number 1"):
        TeacherCache(damaged(without))

    def older(folder):
        values = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(values | {"format": 0}))

    with pytest.raises(CacheError, match="expected format 1, got int 0"):
        TeacherCache(damaged(older))
    with pytest.raises(CacheError, match="expected the manifest of a cache, but it is damaged"):
        TeacherCache(damaged(lambda folder: (folder / "manifest.json").write_text("{")))


class Growing(Examples):
    def __getitem__(self, index):
        return torch.ones(2, 8, 6 + index // 8)


def test_data_sets_that_will_not_do(tmp_path, teacher, data):
    with pytest.raises(CacheError, match="^dataset: expected .*all must have one shape"):
        write(tmp_path / "a", teacher[:3], Growing(), batch_size=1)
    with pytest.raises(TypeError, match="^inputs: expected a function from a batch"):
        write(tmp_path / "b", teacher, [{"x": x} for x in data.inputs])
    found = write(tmp_path / "c", teacher, [{"x": x} for x in data.inputs], inputs=lambda batch: batch["x"])
    assert torch.equal(found[:]["maps.0"], write(tmp_path / "d", teacher, data)[:]["maps.0"])
    with pytest.raises(ValueError, match="^layers: expected at least one, or output="):
        write(tmp_path / "e", teacher, data, layers=[])
    with pytest.raises(ValueError, match="^layers.* is no layer of"):
        write(tmp_path / "f", teacher, data, layers=["9"])
    with pytest.raises(ValueError, match="^taps: expected"):
        write(tmp_path / "g", teacher, data, taps=HintLoss([3], [5]))
    with pytest.raises(TypeError, match="^output: expected"):
        write(tmp_path / "h", teacher, data, output=lambda y: y.shape)


# ---------------------------------------------------------------------------------------------- fingerprints


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_fingerprints(dtype):
    """Of each example alone, whatever its batch and strides; other where anything is."""
    x = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(0))
    x = (x > 0 if dtype == torch.bool else 100 * x).to(dtype)
    x[1] = x[0]
    found = fingerprints((x,))
    assert found[0] == found[1] and len(found[1:].unique()) == 5
    assert torch.equal(fingerprints((x[3:],)), found[3:])
    assert torch.equal(fingerprints((x.mT.contiguous().mT,)), found)
    assert not (fingerprints((x.flip(2),))[2:] == found[2:]).any()
    two = fingerprints((x, x.flip(0)))
    assert not (two == fingerprints((x.flip(0), x)))[2:4].any()
    with pytest.raises(ValueError, match="^inputs: expected tensors with one batch axis"):
        fingerprints((x, x[:2]))


def test_code_of_the_page(tmp_path, monkeypatch):
    """docs/cached_teachers.md: a cache written and trained from, then its rows fetched by the loader's workers."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

    def encoder_decoder(width):
        encoder = nn.Sequential(*(nn.Conv1d(a, width, 3, padding=1) for a in (2, width, width, width)))
        return nn.Sequential(OrderedDict(encoder=encoder, decoder=nn.Sequential(nn.Conv1d(width, 1, 1))))

    inputs = torch.randn(4, 2, 9)
    names = {
        "torch": torch, "nn": nn, "Dataset": Dataset, "DataLoader": lambda *data, num_workers: DataLoader(*data),
        "teacher": encoder_decoder(6), "student": encoder_decoder(3), "dataset": list(inputs),
        "student_layers": ["encoder.1", "encoder.3", "decoder.0"], "student_channels": [3, 3, 1],
        "teacher_channels": [6, 6, 1], "task_loss": nn.MSELoss(),
        "loader": [(torch.arange(4), inputs, torch.randn(4, 1, 9))],
    }  # fmt: skip
    trained, fetched = blocks("docs/cached_teachers.md", "python")
    exec(trained, names)
    assert names["student"].encoder[1].weight.grad.abs().max() > 0
    names["compiled_distiller"] = names["distiller"]  # compiling has tests of its own
    exec(fetched, names)
    torch.testing.assert_close(names["output"].loss, names["distiller"](inputs, examples=torch.arange(4)).loss)
