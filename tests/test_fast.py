"""What `make test-fast` names is there."""

import re

import pytest
from fast import CHOSEN, TESTS


@pytest.mark.parametrize("chosen", [test for tests in CHOSEN.values() for test in tests])
def test_chosen_tests_exist(chosen):
    file, _, name = chosen.partition("::")
    texts = [(TESTS / file).read_text(), (TESTS / "losses" / "suite.py").read_text() if "losses/" in file else ""]
    assert not name or any(re.search(rf"^(def|class) {name}\b", text, re.MULTILINE) for text in texts)
