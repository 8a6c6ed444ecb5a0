"""Pairs as examples, alone and beside others, and what examples are made of."""

import numpy as np
import pytest
import torch
from made_audio import RATE, noise_like, speech_like, write_wav

from abckd_dns.data.examples import inventory, labelled_examples
from abckd_dns.data.mixtures import Blend, PairSegments
from abckd_dns.data.pools import PairPool
from abckd_dns.errors import InputError
from abckd_dns.options import PrepareOptions


def write_pairs(root, count=3, noisy="noisy_trainset_28spk_wav", clean="clean_trainset_28spk_wav", rate=RATE):
    for index in range(count):
        speech = speech_like(1.5 + 0.2 * index, index, rate)
        write_wav(root / clean / f"p226_{index:03}.wav", speech, rate)
        write_wav(root / noisy / f"p226_{index:03}.wav", speech + 0.1 * noise_like(60, index)[: len(speech)], rate)
    return root


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """As VoiceBank-DEMAND is unpacked; 48 kHz, as there."""
    return write_pairs(tmp_path_factory.mktemp("pairs"), rate=48_000)


def options(tmp_path, **values):
    return PrepareOptions(out=tmp_path / "none", count=40, **values)


def test_both_sides_of_a_segment_lie_alike(pairs, tmp_path):
    examples = labelled_examples(options(tmp_path, pairs=pairs), RATE // 2, 40)
    starts = set()
    for index in range(10):
        example = examples[index]
        assert example["noisy"].shape == example["clean"].shape == (RATE // 2,)
        noise = example["noisy"] - example["clean"]
        assert noise.std() < 0.015  # moved by a single sample, the speech would not cancel
        starts.add(round(example["clean"][100].item(), 6))
    assert len(starts) > 5


def test_an_example_depends_on_seed_and_number_alone(pairs, tmp_path):
    first, again = (labelled_examples(options(tmp_path, pairs=pairs), 4_000, 40) for _ in range(2))
    _ = [again[index] for index in range(5)]
    assert torch.equal(first[7]["noisy"], again[7]["noisy"])
    other = labelled_examples(options(tmp_path, pairs=pairs, seed=1), 4_000, 40)
    assert not torch.equal(first[7]["noisy"], other[7]["noisy"])


def test_short_pairs_are_padded_on_both_sides_alike(pairs, tmp_path):
    example = labelled_examples(options(tmp_path, pairs=pairs), 3 * RATE, 40)[0]
    (heard,) = example["clean"].nonzero(as_tuple=True)
    for side in ("noisy", "clean"):
        (found,) = example[side].nonzero(as_tuple=True)
        assert RATE < found[-1] - found[0] < 2 * RATE
        assert abs(found[0] - heard[0]) < 0.3 * RATE


def test_any_share(folders, pairs, tmp_path):
    examples = labelled_examples(
        options(tmp_path, pairs=pairs, clean=folders / "clean", noise=folders / "noise", pairs_fraction=0.25),
        1_000,
        400,
    )
    assert isinstance(examples, Blend)
    of_pairs = [np.random.default_rng((0, index, 2)).random() < 0.25 for index in range(400)]
    assert 70 < sum(of_pairs) < 130
    for index in (of_pairs.index(True), of_pairs.index(False)):
        chosen = examples.second if of_pairs[index] else examples.first
        assert torch.equal(examples[index]["clean"], chosen[index]["clean"])


@pytest.mark.parametrize("fault", ["length", "rate"])
def test_sides_that_nobody_can_align_are_passed_over(tmp_path, fault):
    root = write_pairs(tmp_path)
    speech = speech_like(1.4, 9)
    path = root / "noisy_trainset_28spk_wav" / "p226_000.wav"
    write_wav(path, speech, RATE if fault == "length" else 8_000)
    pool = PairPool((root,), "--pairs", 0.5)
    said = "has 1.400 s, but .* 1.500 s" if fault == "length" else "sampled at 8000 Hz, .* at 16000 Hz"
    with pytest.warns(UserWarning, match=said):
        for index in range(20):
            PairSegments(pool, 2_000, 20, 0, -60)[index]
    assert pool.corrupt_count == 1
    strict = PairPool((root,), "--pairs", 0.1)
    with pytest.warns(UserWarning), pytest.raises(InputError, match="--pairs: 1 of 3 files .* more than --max-corrupt"):
        for index in range(20):
            PairSegments(strict, 2_000, 20, 0, -60)[index]


def test_own_names_of_sides(tmp_path):
    write_pairs(tmp_path, noisy="before", clean="after")
    given = options(tmp_path, pairs=tmp_path, sides=("before", "after"))
    assert labelled_examples(given, 1_000, 3)[0]["noisy"].shape == (1_000,)


def test_a_folder_that_moved_is_known_and_another_is_not(tmp_path):
    write_pairs(tmp_path / "a" / "pairs")
    found = [inventory(labelled_examples(options(tmp_path, pairs=tmp_path / "a" / "pairs"), 1_000, 3))]
    (tmp_path / "a").rename(tmp_path / "b")
    found.append(inventory(labelled_examples(options(tmp_path, pairs=tmp_path / "b" / "pairs"), 1_000, 3)))
    write_pairs(tmp_path / "b" / "pairs", count=4)
    found.append(inventory(labelled_examples(options(tmp_path, pairs=tmp_path / "b" / "pairs"), 1_000, 3)))
    assert found[0] == found[1] != found[2]
    assert found[0]["--pairs"].startswith("3 files, ")


def test_nothing_to_learn_from(tmp_path):
    with pytest.raises(InputError, match="--clean: a folder is needed"):
        labelled_examples(options(tmp_path), 1_000, 3)
    for fraction in (0.0, 1.0, -1.0):
        with pytest.raises(InputError, match="--pairs-fraction: expected a number between 0 and 1"):
            options(tmp_path, pairs_fraction=fraction)
