"""The two minutes that find most, `make test-fast`: of each kind of test the part that fails for most faults.

    python tests/fast.py [arguments of pytest]

Before a change is committed all tests run, `make test`.
"""

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FAMILIES = ("abc_losses", "attention", "hint_losses", "logits", "projected_losses", "relations", "signal_losses")
OF_LOSSES = ("definition", "gradient", "published", "lengths_are_cropping", "garbage_in_padded_frames", "silence")
# Why: what it would take to find the same fault elsewhere.
CHOSEN = {
    "a wrong value, gradient or padding of a loss": [
        f"losses/test_{family}.py::test_{test}" for family in FAMILIES for test in OF_LOSSES
    ],
    "a wrong value or gradient of an op on the CPU, compiled and reference": [
        *(f"test_{op}.py::test_against_oracle" for op in ("tap", "compress", "divergence", "spectral", "pointwise")),
        *(f"test_{op}.py::test_against_numpy" for op in ("gram", "dots", "pyramid", "correlation")),
        "test_project.py::test_against_oracle",
    ],
    "a second derivative, a length changed in place, a lock held": ["test_contract.py"],
    "a step of the headline loss, and what a Distiller does to networks": [
        "test_abc_loss.py::test_options",
        "test_abc_loss.py::TestABCLoss",
        "distill/test_distiller.py::test_equals_a_loop_written_by_hand",
        "distill/test_distiller.py::test_nothing_is_left_in_the_networks_after_a_step_or_an_error",
    ],
    "pages that no longer say what is there": ["test_docs.py", "losses/test_table.py"],
    "commands, training, restart and streaming of the trainer": [
        "dns/test_arguments.py",
        "dns/test_commands.py::test_train_leaves_a_run",
        "dns/test_commands.py::test_distill_with_labels",
        "dns/training/test_restart.py::test_signal_saves_and_exits",
        "dns/network/test_streaming.py::test_equals_the_result_at_once",
    ],
}


def main(arguments: list[str]) -> int:
    chosen = [str(TESTS / test) for tests in CHOSEN.values() for test in tests]
    return pytest.main([*chosen, *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
