"""The documentation's commands and code of the trainer run as they stand there."""

import shlex
import shutil

import numpy as np
import pytest
import soundfile
import torch
from made_audio import SHORT, noise_like, speech_like, write_folders, write_wav
from pages import blocks, pages

import abckd_dns.cli
from abckd_dns.cli import main
from abckd_dns.constants import SAMPLE_RATE

# What makes a command of README short; what runs elsewhere is read here, so that no flag is out of date.
FEWER = {
    "train": SHORT,
    "distill": SHORT,
    "evaluate": ["--count", "2", "--seconds", "1", "--metrics", "si-sdr"],
    "denoise": [],
}
ELSEWHERE = {"export": "network/test_export.py", "describe": "network/test_describe.py", "study": "study/test_study.py"}


RECIPES = ("docs/recipes/dns_challenge.md", "docs/recipes/voicebank.md")
IN_FULL = ("README.md", *RECIPES)  # run here, and in test_recipe_pages.py


def commands(page: str) -> list[list[str]]:
    """The words of each abckd-dns in the page's blocks."""
    lines = [shlex.split(line, comments=True) for block in blocks(page, "sh") for line in block.splitlines()]
    return [line for line in lines if line[:1] == ["abckd-dns"]]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with all that README's commands name."""
    root = tmp_path_factory.mktemp("readme")
    made = write_folders(root / "made")
    shutil.copytree(made / "clean", root / "test" / "speech")
    shutil.copytree(made / "noise", root / "test" / "noise")
    for name, here in (("clean", "speech"), ("noise", "noise"), ("noisy", "recordings")):
        (made / name).rename(root / here)
    for i in range(2):
        speech = speech_like(2, i)
        write_wav(root / "VoiceBank-DEMAND" / "clean_testset_wav" / f"p{i}.wav", speech)
        write_wav(root / "VoiceBank-DEMAND" / "noisy_testset_wav" / f"p{i}.wav", speech + noise_like(2, i))
    write_wav(root / "noisy.wav", speech_like(1, 3))
    return root


def test_commands_run_in_their_order(place, monkeypatch):
    """README's, each on what those before it left."""
    monkeypatch.chdir(place)
    read = []
    for _, command, *arguments in commands("README.md"):
        if command in ELSEWHERE or "--systems" in arguments:  # whose weights are the extra [rivals]
            with monkeypatch.context() as patch:
                patch.setattr(abckd_dns.cli, "_function_for", lambda options: read.append)
                main([command, *arguments])
        else:
            # A command's own flags stand last, so that they count where both say something.
            main([command, *FEWER[command], *arguments])
    assert {path.name for path in (place / "runs").iterdir()} == {"teacher", "student", "label_free"}
    assert (place / "scores.csv").read_text() and (place / "pairs.csv").read_text()
    assert (place / "enhanced.wav").stat().st_size == (place / "noisy.wav").stat().st_size
    assert len(read) == 3
    _stream(place)


def _stream(place):
    """The code of docs/deployment.md gives what `denoise` gave."""
    at_once, code = blocks("docs/deployment.md", "python")
    exec(at_once, names := {})
    written, _ = soundfile.read(place / "enhanced.wav", dtype="float32")
    np.testing.assert_allclose(names["enhanced"], written, rtol=0, atol=2**-15)

    noisy, _ = soundfile.read(place / "noisy.wav", dtype="float32")
    noisy, played = torch.from_numpy(noisy)[None, :-100], []
    whole = noisy.shape[1] // 256 * 256
    heard = noisy[:, :whole].split(256, dim=1)

    def microphone():
        for samples in heard:
            yield samples
            played.append(names["enhanced"])

    names = {"torch": torch, "microphone": microphone(), "rest": noisy[:, whole:]}
    exec(code, names)
    ours = torch.cat([*played, names["end"]], 1)[:, 256:]
    network = names["load_network"]("runs/student", "checkpoint").eval()
    with torch.inference_mode():
        torch.testing.assert_close(ours, network(noisy), rtol=0, atol=1e-5)
    assert noisy.shape[1] % 256 and SAMPLE_RATE == 16_000


@pytest.mark.parametrize("page", [page for page in pages() if commands(page) and page not in IN_FULL])
def test_commands_of_other_pages_have_the_flags_that_there_are(page, monkeypatch):
    read = []
    monkeypatch.setattr(abckd_dns.cli, "_function_for", lambda options: read.append)
    for _, command, *arguments in commands(page):
        assert command in ELSEWHERE, f"{page}: run {command} in a test"
        main([command, *arguments])
    assert len(read) == len(commands(page))
