"""What `describe` says of a network."""

import pytest
import torch
from own_networks import small

from abckd_dns.cli import main
from abckd_dns.network.config import PRESETS, DenoiserConfig
from abckd_dns.network.denoiser import Denoiser
from abckd_dns.network.describe import feature_shapes, macs_per_second


def test_operations_are_those_of_the_definition():
    config = DenoiserConfig(channels=(4, 6), recurrent_size=200)
    bins, frames = (257, 129, 65), 16_000 / 256
    taps = 2 * 3
    encoder = 3 * 4 * bins[1] * taps + 4 * 6 * bins[2] * taps
    recurrent = 3 * 200 * (6 * bins[2] + 200) + 200 * 6 * bins[2]
    skips = 6 * 6 * bins[2] + 4 * 4 * bins[1]
    decoder = 6 * 4 * bins[2] * taps + 4 * 2 * bins[1] * taps
    counted = macs_per_second(Denoiser(config).eval())
    assert counted == pytest.approx(frames * (encoder + recurrent + skips + decoder), rel=0.01)


def test_shapes_are_those_of_the_features():
    shapes = feature_shapes(Denoiser(PRESETS["student"]).eval())
    assert list(shapes) == list(Denoiser(PRESETS["student"]).distillation_layers)
    assert shapes["encoder.0"] == (1, 8, 63, 129) and shapes["bottleneck"] == (1, 16, 63, 9)


def test_layers_of_an_own_network():
    network = small()
    assert feature_shapes(network) == {
        "features": (1, 4, 499),
        "pair:0": (1, 4, 499),
        "pair:1": (1, 4, 499),
        "back": (1, 1, 16_000),
    }
    assert not any(module._forward_hooks for module in network.modules())


def test_describe_a_preset(capsys):
    threads = torch.get_num_threads()
    main(["describe", "student"])
    printed = capsys.readouterr().out
    count = sum(parameter.numel() for parameter in Denoiser(PRESETS["student"]).parameters())
    for part in (f"{count:,}", "32 ms (512 samples)", "at once", "step by step", "of 16 ms", "decoder.3"):
        assert part in printed
    assert torch.get_num_threads() == threads


def test_describe_an_own_network(capsys):
    main(["describe", "own_networks:small"])
    printed = capsys.readouterr().out
    assert "unknown" in printed and "pair:0" in printed and "step by step" not in printed


def test_describe_nothing():
    with pytest.raises(SystemExit, match="network: no_such_network is not"):
        main(["describe", "no_such_network"])
