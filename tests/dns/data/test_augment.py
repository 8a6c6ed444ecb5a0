"""Augmentation: what each does, and that an example stays a function of seed and number."""

import pytest
import torch
from made_audio import RATE, noise_like, speech_like
from torch.utils.data import Dataset

from abckd_dns.data.augment import _BUILT_IN, Augmented
from abckd_dns.data.codec import CODECS, through_codec
from abckd_dns.data.mixing import EARLY_SECONDS, reverberate, reverberate_with_early
from abckd_dns.errors import InputError
from abckd_dns.options import AUGMENTATIONS, PrepareOptions


class Examples(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        clean = torch.from_numpy(speech_like(1, index))
        return {"noisy": clean + 0.2 * torch.from_numpy(noise_like(1, index)), "clean": clean}


def louder(noisy, clean, rng):
    gain = 1 + rng.random()
    return noisy * gain, clean * gain


def shorter(noisy, clean, rng):
    return noisy[1:], clean[1:]


def broken(noisy, clean, rng):
    return noisy / 0, clean


def test_names_are_those_of_the_functions():
    assert set(AUGMENTATIONS) == _BUILT_IN.keys()


@pytest.mark.parametrize("name", [*AUGMENTATIONS, f"{__name__}:louder"])
def test_an_example_depends_on_seed_and_number_alone(name):
    first, again, other = (Augmented(Examples(), [f"{name}=1"], seed) for seed in (0, 0, 1))
    _ = again[2]
    assert torch.equal(first[1]["noisy"], again[1]["noisy"])
    assert not all(torch.equal(first[i]["noisy"], other[i]["noisy"]) for i in range(6))
    for index in range(3):
        assert not torch.equal(first[index]["noisy"], Examples()[index]["noisy"])
        assert first[index]["noisy"].shape == first[index]["clean"].shape == (RATE,)


def test_one_augmentation_does_not_change_what_another_draws():
    alone = Augmented(Examples(), ["clip=1"], 0)
    behind = Augmented(Examples(), ["clip=1", "level=0.5"], 0)
    untouched = [i for i in range(6) if torch.equal(alone[i]["noisy"], behind[i]["noisy"])]
    assert 0 < len(untouched) < 6


def test_targets():
    """Clipping and codecs are not in the target; a level and a band are, or the network would have to invent."""
    plain = Examples()[0]
    for name in ("clip", "codec"):
        assert torch.equal(Augmented(Examples(), [f"{name}=1"], 0)[0]["clean"], plain["clean"])
    found = Augmented(Examples(), ["level=1"], 0)[0]
    gains = [(found[side].norm() / plain[side].norm()).item() for side in ("noisy", "clean")]
    assert gains[0] == pytest.approx(gains[1], rel=1e-5) and gains[0] != pytest.approx(1, rel=0.01)
    assert found["noisy"].abs().max() <= 0.99
    found = Augmented(Examples(), ["band=1"], 0)[0]
    for side in ("noisy", "clean"):
        before, after = (torch.fft.rfft(x[side]).abs()[7_500:].norm() for x in (plain, found))
        assert after < 0.5 * before


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.encoder)
def test_codecs_lose_something_but_not_the_place(codec):
    speech = torch.from_numpy(speech_like(1, 0))
    decoded = through_codec(speech, codec, codec.bit_rates[-1])
    assert decoded.shape == speech.shape and not torch.equal(decoded, speech)
    share = torch.dot(decoded, speech) / decoded.norm() / speech.norm()
    moved = torch.dot(decoded[3:], speech[:-3]) / decoded.norm() / speech.norm()
    assert share > 0.9 and share > moved


def test_early_reflections():
    speech = torch.from_numpy(speech_like(1, 0))
    response = torch.zeros(RATE // 2)
    late = 100 + round(2 * EARLY_SECONDS * RATE)
    response[100], response[300], response[late] = 1.0, 0.5, 0.4
    wet, target = reverberate_with_early(speech, response)
    torch.testing.assert_close(wet, reverberate(speech, response))
    late_part = wet - target
    expected = torch.zeros_like(speech)
    expected[late - 100 :] = 0.4 * speech[: 100 - late]
    scale = torch.dot(late_part, expected) / expected.square().sum()
    torch.testing.assert_close(late_part, scale * expected, atol=1e-5, rtol=0)
    assert target[: late - 100].allclose(wet[: late - 100], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{__name__}:shorter=1", r"expected noisy \(16000,\) torch.float32, got \(15999,\)"),
        (f"{__name__}:broken=1", "noisy of example 0 has values that are not finite"),
        (f"{__name__}:absent=1", "has no absent"),
        ("no_such_module:f", "cannot import no_such_module"),
    ],
)
def test_own_ones_that_are_wrong(text, said):
    with pytest.raises(InputError, match=f"--augment .*{said}"):
        Augmented(Examples(), [text], 0)[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [("echo", "got 'echo'"), ("clip=2", "got '2'"), ("clip=often", "got 'often'"), ("clip=0", "got '0'")],
)
def test_names_that_are_wrong(tmp_path, text, said):
    with pytest.raises(InputError, match=f"--augment: expected .*{said}"):
        PrepareOptions(out=tmp_path, count=1, augment=(text,))
