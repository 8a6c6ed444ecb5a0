"""benchmarks.loader: a rate for every kind of source and every number of workers, counted and timed as it says."""

import itertools
import sys

import pytest
from made_audio import data_arguments
from torch.utils.data import Dataset

from benchmarks import loader


def table(capsys, monkeypatch, *arguments: str) -> list[list[str]]:
    """The rows that the program prints, below the head."""
    few = ["--seconds", "0.5", "--batch-size", "4", "--count", "12", "--workers", "0", "1"]
    monkeypatch.setattr(sys, "argv", ["loader", *few, *arguments])
    loader.main()
    first, head, *rows = capsys.readouterr().out.splitlines()
    assert first == "12 mixtures of 0.5 s in batches of 4" and head.split() == ["source", *head.split()[1:]]
    return [row.split() for row in rows]


@pytest.mark.parametrize("given", [True, False])
def test_every_source_with_every_number_of_workers(folders, capsys, monkeypatch, given):
    rows = table(capsys, monkeypatch, *(data_arguments(folders) if given else []))
    sources = ["given", "prepared"] if given else ["wav", "flac", "shards", "prepared"]
    assert [(row[0], row[1]) for row in rows] == list(itertools.product(sources, ["0", "1"]))
    assert all(float(row[2]) > 0 and row[2] == row[3] for row in rows)  # of one worker, or none, it is the same


class Counted(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"noisy": index}


def test_the_first_batch_is_not_counted(monkeypatch):
    times = iter([5.0, 7.0])
    monkeypatch.setattr(loader.time, "perf_counter", lambda: next(times))
    assert loader._rate(Counted(), batch_size=4, workers=0) == (10 - 4) / 2


def test_one_folder_alone_is_an_error(capsys, monkeypatch, tmp_path):
    with pytest.raises(SystemExit):
        table(capsys, monkeypatch, "--clean", str(tmp_path))
    assert "give both --clean and --noise, or neither" in capsys.readouterr().err
