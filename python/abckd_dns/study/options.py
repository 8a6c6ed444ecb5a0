"""The options of the command `study`."""

from __future__ import annotations

import os

from ..options import Count, Options, Place, Texts


class StudyOptions(Options):
    """Compare distillation losses over seeds, with and without labels, as a configuration says.

    Interrupted, killed or with failed runs, the same command goes on: what is done is not done again.
    """

    config: Place
    """TOML file; docs/study.md describes it."""
    jobs: Count = max(1, (os.cpu_count() or 1) - 1)
    """Runs at a time, with one thread each."""
    only: Texts = ()
    """Do only the runs whose names contain one of these, such as label-free/ or /at/ or seed0."""
    report_only: bool = False
    """Train nothing: make tables and plots anew from the CSV files of the results."""
