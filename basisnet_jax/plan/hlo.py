"""The text of a program that XLA has compiled, read for what it moves: between devices, and through their memory."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")

# They move nothing: names for what is there, and the ends of what another instruction has started.
_FREE = ("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "conditional")
_FREE_CALLS = ("call", "ConcatBitcast", "async-start", "async-update")


class Instruction(NamedTuple):
    name: str
    shape: str  # such as "(f32[8,128]{1,0:T(8,128)S(1)}, pred[])"; S(1) is memory on the chip
    operation: str
    operands: list[str]
    attributes: str


def parse(text: str) -> dict[str, list[Instruction]]:
    """The instructions of every computation, by its name; that of the program itself is "ENTRY"."""
    computations: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        if match := re.match(r"(ENTRY )?%?([\w.-]+) .*{$", line):
            instructions = computations.setdefault("ENTRY" if match.group(1) else match.group(2), [])
        elif match := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)", line):
            *head, rest = match.groups()
            operands, _, attributes = rest.partition(")")
            instructions.append(Instruction(*head, re.findall(r"%([\w.-]+)", operands), attributes))
    return computations


def executed(computations, trips: int, fused: bool) -> Iterator[tuple[list[Instruction], int]]:
    """Each computation that runs, and how often: those of loops `trips` times, since the text does not tell."""
    waiting, seen = [("ENTRY", 1)], set()
    while waiting:
        name, times = waiting.pop()
        if name in seen or name not in computations:
            continue
        seen.add(name)
        yield computations[name], times
        for instruction in computations[name]:
            if fused or instruction.operation != "fusion":
                pattern = r"(body|calls|to_apply|branch_computations)=\{?(%[\w.-]+(?:, %[\w.-]+)*)"
                for kind, names in re.findall(pattern, instruction.attributes):
                    inner = times * (trips if kind == "body" else 1)
                    waiting += [(called.strip(" %"), inner) for called in names.split(",")]


def collectives(text: str, trips: int = 1) -> dict[str, dict[str, int]]:
    """{kind: {"count", "bytes"}}; kinds that do not occur are left out.

    The bytes are of the whole array on one device: what an all-gather gives, what a reduce-scatter takes. One that the
    compiler has cut into several steps, which share their channel, counts once.
    """
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for instructions, times in executed(parse(text), trips, fused=True):
        sizes = {}
        for name, shape, operation, operands, attributes in instructions:
            sizes[name] = sum(array.size for array in arrays(shape))
            kind = operation.removesuffix("-start")
            if kind in COLLECTIVES:
                taken = sum(sizes.get(operand, 0) for operand in operands)
                given = sizes[name] - (taken if operation != kind else 0)  # the start of an all-gather holds both
                channel = re.search(r"channel_id=(\d+)", attributes)
                key = kind, channel.group(1) if channel else name
                found[key] = times, max(found.get(key, (0, 0))[1], taken, given)
    by_kind = {kind: [values for (k, _), values in found.items() if k == kind] for kind in COLLECTIVES}
    return {
        kind: {"count": sum(n for n, _ in values), "bytes": sum(n * size for n, size in values)}
        for kind, values in by_kind.items()
        if values
    }


def traffic(text: str, trips: int = 1) -> int:
    """Bytes that the program reads from and writes to a device's main memory (HBM).

    Every instruction reads its operands and writes its results once, a fusion as one instruction; arrays in memory on
    the chip do not count. `cost_analysis` counts those too: five times as much, where the batch of a device is small.
    """
    computations = parse(text)
    total = 0
    for instructions, times in executed(computations, trips, fused=False):
        in_hbm: dict[str, int] = {}
        for name, shape, operation, operands, attributes in instructions:
            given = arrays(shape)
            in_hbm[name] = sum(array.stored for array in given if not array.on_chip)
            if (
                operation in _FREE
                or operation.endswith("-done")
                or any(f'"{call}"' in attributes for call in _FREE_CALLS)
            ):
                continue
            read = [in_hbm.get(operand, 0) for operand in operands]
            if operation.startswith(("slice", "dynamic-slice")):  # reads no more than it gives
                part = given[-2 if operation.endswith("-start") else -1]
                total += times * part.stored * (bool(read[0]) + (not part.on_chip))
            elif operation.endswith("-start"):  # the result holds the operands too
                total += times * in_hbm[name]
            else:
                total += times * (in_hbm[name] + sum(read))
    return total


class Array(NamedTuple):
    size: int  # bytes
    stored: int  # bytes in memory, where the last axes fill up whole tiles
    on_chip: bool


def arrays(shape: str) -> list[Array]:
    """The arrays of a shape, from inside tuples too."""
    found = []
    for bits, dims, layout in re.findall(r"\b[a-z]+(\d*)\w*\[([\d,]*)\](\{[^}]*\})?", shape):
        item, sizes = int(bits or 8) / 8, [int(size) for size in dims.split(",") if size]
        order, _, tiling = layout.strip("{}").partition(":")
        stored = list(sizes)
        if tile := re.match(r"T\(([\d,]+)\)", tiling):
            axes = [int(axis) for axis in order.split(",") if axis]  # the last one in memory comes first
            for axis, n in zip(axes, reversed(tile.group(1).split(",")), strict=False):
                stored[axis] = -(-sizes[axis] // int(n)) * int(n)
        found.append(Array(int(math.prod(sizes) * item), int(math.prod(stored) * item), "S(" in tiling))
    return found
