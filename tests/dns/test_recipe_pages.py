"""Every command of the recipe pages, on a small folder of the layout that the page says."""

import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from made_audio import noise_like, speech_like, write_wav

from abckd_dns.cli import main

PAGES = Path(__file__).parents[2] / "docs" / "recipes"
# The sizes that make a run long; all else is as the page has it.
SMALL = {"--steps": "2", "--count": "6", "--segment-seconds": "1", "--workers": "0"}


def voicebank(root):
    for part, speakers in (("trainset_28spk", ("p226", "p287", "p227")), ("testset", ("p232", "p257"))):
        for seed, speaker in enumerate(speakers):
            speech = speech_like(1.3, seed, 48_000)
            write_wav(root / f"voicebank/clean_{part}_wav/{speaker}_001.wav", speech, 48_000)
            noisy = speech + 0.3 * noise_like(10, seed)[: len(speech)]
            write_wav(root / f"voicebank/noisy_{part}_wav/{speaker}_001.wav", noisy, 48_000)


def dns_challenge(root):
    for seed, place in enumerate(("read_speech/a", "vctk_wav48_silence_trimmed/p225/b")):
        write_wav(root / f"dns/clean/{place}.wav", speech_like(2, seed))
    write_wav(root / "dns/noise/n.wav", noise_like(2, 1))
    write_wav(root / "dns/impulse_responses/SLR26/r.wav", noise_like(0.1, 2))
    for number in range(2):
        speech = speech_like(1.5, 7 + number)
        write_wav(root / f"dns/dev/clean/clean_fileid_{number}.wav", speech)
        write_wav(root / f"dns/dev/noisy/talk_snr5_fileid_{number}.wav", speech + noise_like(1.5, number))
        write_wav(root / f"dns/blind/{number}.wav", speech + noise_like(1.5, number))


def commands(page: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (PAGES / page).read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def small(arguments: list[str]) -> list[str]:
    """With `SMALL`, and batches of two where it trains."""
    changed = [SMALL.get(before, argument) for before, argument in zip(["", *arguments], arguments, strict=False)]
    trains = arguments[0] in ("train", "distill")
    return changed + "--batch-size 2 --segment-seconds 0.5 --workers 0".split() * trains


@pytest.mark.parametrize(("page", "layout"), [("voicebank.md", voicebank), ("dns_challenge.md", dns_challenge)])
def test_every_command_of_a_recipe(page, layout, tmp_path, monkeypatch):
    layout(tmp_path)
    monkeypatch.chdir(tmp_path)
    for line in commands(page):
        program, *arguments = shlex.split(line)
        if program != "abckd-dns":
            subprocess.run(["bash", "-c", line], check=True)
        elif "--noisy" in arguments and find_spec("speechmos") is None:
            continue
        elif program == "abckd-dns" and arguments[0] == "export" and find_spec("onnxscript") is None:
            continue
        else:
            main(small(arguments))
    assert all((tmp_path / "runs" / run / "best.safetensors").is_file() for run in ("teacher", "student"))
    tables = {"voicebank.md": "voicebank.md", "dns_challenge.md": "dns_dev.md"}
    assert "runs/student" in (tmp_path / tables[page]).read_text()


def test_pages_are_found():
    assert {page.name for page in PAGES.glob("*.md")} == {"voicebank.md", "dns_challenge.md"}
    assert all(len(commands(page.name)) >= 6 for page in PAGES.glob("*.md"))
