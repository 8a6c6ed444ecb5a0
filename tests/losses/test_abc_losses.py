"""ABC-KD among the losses; tests/test_abc_loss.py has what is its own."""

import numpy as np
from suite import *  # noqa: F403 - the tests that every loss passes
from suite import Loss

from abckd_kernels import ABCLoss, abc_loss
from abckd_verify.exact import oracle

LAYERS = {"student": [(3, 6, 5), (2, 4, 3)], "teacher": [(4, 6, 5), (3, 9, 4), (5, 3, 5)]}
NO_FUNCTION = {"test_module_is_the_function": "its module takes channels (tests/test_abc_loss.py)"}


def definition(students, teachers, **options):
    return oracle.abc_loss(students, teachers, **options).mean


def learned(students, teachers, parameters):
    """Scores from channel means by queries, keys and layer embeddings."""

    def embedded(kind, features):
        return np.stack([x.mean((2, 3)) @ parameters[f"{kind}.{i}.weight"].T for i, x in enumerate(features)], 1)

    keys = embedded("keys", teachers) + parameters["layer_embedding"]
    scores = embedded("queries", students) @ keys.transpose(0, 2, 1) / np.sqrt(keys.shape[-1])
    return definition(students, teachers, scores=scores)


LOSSES = [
    Loss("abc", abc_loss, definition, **LAYERS, zero_at_equality=False, excused=NO_FUNCTION),
    Loss("abc", abc_loss, definition, **LAYERS, zero_at_equality=False, excused=NO_FUNCTION, options={"power": 1}),
    Loss("abc_learned", None, learned, **LAYERS, zero_at_equality=False, invariant="batch",
         module=lambda: ABCLoss([3, 2], [4, 3, 5], dim=4)),
]  # fmt: skip
