"""ABC-KD has no published code: the definition in plain PyTorch."""

from __future__ import annotations

from .. import eager
from ..measuring import STUDENT, TEACHER
from . import Case

CASES = {"abc": Case(eager.abc_loss, [STUDENT] * 3, [TEACHER] * 6, note="3 student and 6 teacher layers")}
