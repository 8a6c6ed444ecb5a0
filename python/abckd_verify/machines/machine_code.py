"""Reads a kernel's machine code, as disassemblers print it: loads, barriers, local memory, and loops.

Loops are the natural loops of the control flow graph: where a branch leads back to a block that every way to the branch
passes, the loop is that block and all from which the branch is reached without leaving through it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

_SASS_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
_SASS_GLOBAL_LOAD = re.compile(r"(LDG|LDGSTS|LD)\b")
_SASS_BARRIER = re.compile(r"(BAR|UCGABAR\w*|SYNCS)\b")
_SASS_WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
_AMD_LABEL = re.compile(r"^(\.LBB\w+):")
_AMD_LINE = re.compile(r"^\t([a-z]\w*)\b\s*([^;]*)")
_AMD_GLOBAL_LOAD = re.compile(r"(?:global|buffer|flat)_load_(\w+)")
_AMD_WIDTHS = {"dwordx4": 16, "b128": 16, "dwordx3": 12, "b96": 12, "dwordx2": 8, "b64": 8, "dword": 4, "b32": 4}


@dataclass(frozen=True)
class Instruction:
    """loads: bytes per thread, for a load of global memory. target: number of the instruction a branch leads to."""

    text: str
    loads: int = 0
    barrier: bool = False
    local: bool = False  # loads or stores local memory
    nop: bool = False
    target: int | None = None
    falls_through: bool = True  # the next instruction may follow


def read_sass(text: str) -> dict[str, list[Instruction]]:
    """Functions by their symbol, from `cuobjdump --dump-sass`."""
    return {part.split(None, 1)[0]: _sass_function(part) for part in text.split("Function : ")[1:]}


def _sass_function(text: str) -> list[Instruction]:
    lines = [match.groups() for line in text.splitlines() if (match := _SASS_LINE.match(line))]
    numbers = {int(address, 16): number for number, (address, *_) in enumerate(lines)}
    return [_sass_instruction(guard, opcode, operands.strip(), numbers) for _, guard, opcode, operands in lines]


def _sass_instruction(guard: str | None, opcode: str, operands: str, numbers: dict[int, int]) -> Instruction:
    name, *modifiers = opcode.split(".")
    target, always = None, False
    if name in ("BRA", "JMP"):
        address = re.search(r"\b0x([0-9a-f]+)$", operands)
        target = numbers.get(int(address.group(1), 16)) if address else None
        # A second predicate or a uniform one stands among the operands.
        always = guard is None and re.fullmatch(r"0x[0-9a-f]+", operands) is not None
        if "DIV" in modifiers:  # out of the way, for warps that diverged
            target, always = None, False
    elif name in ("EXIT", "RET", "BRX", "JMX"):
        always = guard is None
    width = next((_SASS_WIDTHS[part] for part in modifiers if part in _SASS_WIDTHS), 4)
    return Instruction(
        f"{guard or ''} {opcode} {operands}".strip(),
        loads=width if _SASS_GLOBAL_LOAD.fullmatch(name) else 0,
        barrier=_SASS_BARRIER.fullmatch(name) is not None,
        local=name in ("LDL", "STL"),
        nop=name == "NOP",
        target=target,
        falls_through=not always,
    )


def read_amdgcn(text: str) -> list[Instruction]:
    """The function in AMD assembly of one kernel."""
    numbers, lines = {}, []
    for line in text.partition(".Lfunc_end0:")[0].splitlines():
        if label := _AMD_LABEL.match(line):
            numbers[label.group(1)] = len(lines)
        elif instruction := _AMD_LINE.match(line):
            lines.append(instruction.groups())
    return [_amd_instruction(opcode, operands.strip(), numbers) for opcode, operands in lines]


def _amd_instruction(opcode: str, operands: str, numbers: dict[str, int]) -> Instruction:
    load = _AMD_GLOBAL_LOAD.match(opcode)
    return Instruction(
        f"{opcode} {operands}".strip(),
        loads=_amd_width(load.group(1)) if load else 0,
        barrier=opcode.startswith("s_barrier"),
        local=opcode.startswith(("scratch_load", "scratch_store")),
        nop=opcode == "s_nop",
        target=numbers.get(operands) if opcode.startswith(("s_cbranch", "s_branch")) else None,
        falls_through=opcode not in ("s_branch", "s_endpgm", "s_setpc_b64"),
    )


def _amd_width(kind: str) -> int:
    return _AMD_WIDTHS.get(kind, 1 if kind.endswith(("byte", "byte_d16", "i8", "u8")) else 2)


@dataclass(frozen=True)
class Loop:
    body: frozenset[int]  # numbers of its instructions
    instructions: int  # without those that do nothing
    loads: tuple[int, ...]  # bytes per thread of each load of global memory
    barriers: int

    @property
    def loads_of_16(self) -> float:
        """Loads of 16 bytes; one of 32 counts twice."""
        return sum(width for width in self.loads if width >= 16) / 16


def loops(code: list[Instruction]) -> list[Loop]:
    return [_summary(code, body) for body in _natural_loops(code)]


def inner_loop(code: list[Instruction]) -> Loop | None:
    """Of the loops that load global memory and hold no other such loop, the one that loads most by 16 bytes."""
    loading = [loop for loop in loops(code) if loop.loads]
    innermost = [loop for loop in loading if not any(other.body < loop.body for other in loading)]
    return max(innermost, key=lambda loop: (loop.loads_of_16, sum(loop.loads), -loop.instructions), default=None)


def _summary(code: list[Instruction], body: frozenset[int]) -> Loop:
    inside = [code[number] for number in body]
    return Loop(
        body,
        instructions=sum(not one.nop for one in inside),
        loads=tuple(one.loads for one in inside if one.loads),
        barriers=sum(one.barrier for one in inside),
    )


def _natural_loops(code: list[Instruction]) -> list[frozenset[int]]:
    """Instructions of each loop; loops that share a first block are one."""
    starts = {0} | {one.target for one in code if one.target is not None}
    starts |= {number + 1 for number, one in enumerate(code) if one.target is not None or not one.falls_through}
    blocks = [range(*ends) for ends in pairwise(sorted(starts | {len(code)}))]
    block_at = {block.start: number for number, block in enumerate(blocks)}
    after = []
    for block in blocks:
        last = code[block[-1]]
        ways = [last.target] if last.target is not None else []
        ways += [block.stop] if last.falls_through and block.stop < len(code) else []
        after.append([block_at[way] for way in ways])
    order, dominators = _dominators(after)
    before = defaultdict(list)
    for block in order:
        for following in after[block]:
            before[following].append(block)
    bodies = defaultdict(set)
    for head in order:
        for tail in before[head]:
            if head in dominators[tail] and not _is_padding(code, blocks[head], head == tail):
                bodies[head] |= _reaching(tail, head, before)
    return [frozenset(number for block in body for number in blocks[block]) for body in bodies.values()]


def _is_padding(code: list[Instruction], block: range, alone: bool) -> bool:
    """A branch to itself, which stands behind the last instruction of a kernel."""
    return alone and len(block) == 1 and code[block[0]].target == block[0]


def _dominators(after: list[list[int]]) -> tuple[list[int], dict[int, set[int]]]:
    """Blocks that can be reached, in reverse postorder; for each, the blocks that every way to it passes."""
    order, seen, stack = [], {0}, [(0, iter(after[0]))]
    while stack:
        block, rest = stack[-1]
        following = next((way for way in rest if way not in seen), None)
        if following is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(after[following])))
    order.reverse()
    before = defaultdict(list)
    for block in order:
        for following in after[block]:
            before[following].append(block)
    dominators = {block: set(order) for block in order}
    dominators[order[0]] = {order[0]}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            new = {block} | set.intersection(*(dominators[one] for one in before[block]))
            changed |= new != dominators[block]
            dominators[block] = new
    return order, dominators


def _reaching(tail: int, head: int, before: dict[int, list[int]]) -> set[int]:
    """Blocks from which `tail` is reached without passing `head`, and `head`."""
    body, waiting = {head, tail}, [tail] if tail != head else []
    while waiting:
        for block in before[waiting.pop()]:
            if block not in body:
                body.add(block)
                waiting.append(block)
    return body
