"""What the tests themselves rely on to run over fewer cases."""

import itertools

import cases


def test_pairs_hold_every_two_items():
    axes = ["ab", "cde", "fghi", "jk"]
    rows = cases.pairs(*axes)
    assert len(rows) < 20 < 2 * 3 * 4 * 2
    for (a, first), (b, second) in itertools.combinations(enumerate(axes), 2):
        assert {(row[a], row[b]) for row in rows} == set(itertools.product(first, second))
