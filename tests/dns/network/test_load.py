"""Networks by name, and checkpoints."""

import own_networks
import pytest
import safetensors.torch
import torch

from abckd_dns.errors import InputError
from abckd_dns.network.config import DenoiserConfig
from abckd_dns.network.denoiser import Denoiser
from abckd_dns.network.load import load_network, save_checkpoint

WAVEFORM = 0.1 * torch.randn(1, 4_000)


@pytest.mark.parametrize("name", ["folder", "file"])
def test_checkpoint_round_trip(tmp_path, name):
    network = Denoiser(DenoiserConfig(channels=(4, 6), recurrent_size=8)).eval()
    save_checkpoint(tmp_path / "model.safetensors", network)
    path = tmp_path if name == "folder" else tmp_path / "model.safetensors"
    again = load_network(str(path), "--teacher").eval()
    assert again.config == network.config
    assert torch.equal(again(WAVEFORM), network(WAVEFORM))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_checkpoint_of_an_own_network(tmp_path):
    network = own_networks.small()
    save_checkpoint(tmp_path / "model.safetensors", network)
    again = load_network(f"own_networks:small@{tmp_path}", "--teacher")
    assert torch.equal(again(WAVEFORM), network(WAVEFORM))
    with pytest.raises(InputError, match=r"--teacher: .* weights of own_networks.Gate.*package.module:factory@"):
        load_network(str(tmp_path), "--teacher")
    with pytest.raises(InputError, match="do not fit the network"):
        load_network(f"own_networks:large@{tmp_path}", "--teacher")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_preset", "no_such_preset is not .* checkpoint .* one of teacher, student"),
        ("student", "the preset student has not learned anything"),
        ("no_such_module:factory", "cannot import no_such_module"),
        ("own_networks:missing", "own_networks has no missing"),
        ("own_networks:constant", "expected a function, got own_networks:constant, which is a int"),
        ("own_networks:needs_argument", "expected a function without arguments.*size"),
        ("own_networks:no_module", "returned a int, expected a torch.nn.Module"),
        ("own_networks:wrong_shape", "failed on a noisy waveform|must map a noisy waveform"),
        ("own_networks:shorter", r"must map a noisy waveform .* gave \(2, 15998\)"),
        ("own_networks:fails", "RuntimeError: out of luck"),
    ],
)
def test_bad_names_say_what_is_wrong(name, message):
    with pytest.raises(InputError, match=f"--student: .*({message})"):
        load_network(name, "--student")


def test_not_a_checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"pickle")
    with pytest.raises(InputError, match="is not a safetensors file"):
        load_network(str(path), "--teacher")
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="an unknown network"):
        load_network(str(path), "--teacher")


def test_a_preset_is_a_new_network_even_beside_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "student"
    run.mkdir()
    network = load_network("student", "--student", new=True)
    save_checkpoint(run / "model.safetensors", network)
    assert torch.equal(load_network("student", "--checkpoint")(WAVEFORM), network(WAVEFORM))
    assert not torch.equal(load_network("student", "--student", new=True)(WAVEFORM), network(WAVEFORM))
