"""The text of a program that XLA has compiled, read for what it moves: between devices, and through their memory."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")

# They move nothing: names for what is there, and the ends of what another instruction has started.
_NAMES = ("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id")
_HOLDERS = ("while", "conditional", "call", "async-start", "async-update")  # what they hold is looked at by itself
_FREE_CALLS = ("call", "ConcatBitcast", "async-start", "async-update")

_NAME_TABLES = ("FileNames", "FunctionNames")
_DTYPES = {"f": "float", "bf": "bfloat", "s": "int", "u": "uint", "pred": "bool"}


class Instruction(NamedTuple):
    name: str
    shape: str  # such as "(f32[8,128]{1,0:T(8,128)S(1)}, pred[])"; S(1) is memory on the chip
    operation: str
    operands: list[str]  # by name; of a parameter its number
    attributes: str

    @property
    def works(self) -> bool:
        """Whether something runs for it, on a GPU a kernel or a library's function."""
        return not (
            self.operation in _NAMES + _HOLDERS
            or self.operation.endswith("-done")
            or any(f'"{call}"' in self.attributes for call in _FREE_CALLS)
        )


def parse(text: str) -> dict[str, list[Instruction]]:
    """The instructions of every computation, by its name; that of the program itself is "ENTRY"."""
    computations: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        if match := re.match(r"(ENTRY )?%?([\w.-]+) .*{$", line):
            instructions = computations.setdefault("ENTRY" if match.group(1) else match.group(2), [])
        elif match := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)", line):
            *head, rest = match.groups()
            given, _, attributes = rest.partition(")")
            instructions.append(Instruction(*head, re.findall(r"%([\w.-]+)", given) or [given], attributes))
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


def collectives(text: str, trips: int = 1) -> dict[str, dict]:
    """{kind: {"count", "bytes", "types": {dtype: bytes}}}; kinds that do not occur are left out.

    The bytes are of the whole array on one device: what an all-gather gives, what a reduce-scatter takes. One that the
    compiler has cut into several steps, which share their channel, counts once. All-reduces are not cut, and those that
    JAX made in `shard_map` all have one channel.
    """
    found: dict[tuple[str, str], tuple[int, Counter]] = {}
    for instructions, times in executed(parse(text), trips, fused=True):
        sizes: dict[str, Counter] = {}
        for name, shape, operation, operands, attributes in instructions:
            sizes[name] = sum((Counter({array.dtype: array.size}) for array in arrays(shape)), Counter())
            kind = operation.removesuffix("-start")
            if kind in COLLECTIVES:
                taken = sum((sizes.get(operand, Counter()) for operand in operands), Counter())
                given = sizes[name] - (taken if operation != kind else Counter())  # an all-gather's start holds both
                channel = re.search(r"channel_id=(\d+)", attributes)
                key = kind, channel.group(1) if channel and kind != "all-reduce" else name
                known = found.get(key, (0, Counter()))[1]
                found[key] = times, max(known, taken, given, key=Counter.total)
    by_kind = {}
    for (kind, _), (times, types) in sorted(found.items(), key=lambda item: COLLECTIVES.index(item[0][0])):
        total = by_kind.setdefault(kind, {"count": 0, "bytes": 0, "types": Counter()})
        total["count"] += times
        total["bytes"] += times * types.total()
        total["types"].update({dtype: times * size for dtype, size in types.items()})
    return {kind: total | {"types": dict(sorted(total["types"].items()))} for kind, total in by_kind.items()}


def launches(text: str, trips: int = 1) -> int:
    """How many kernels and functions of libraries a GPU's program starts. A library may start several kernels."""
    return sum(
        times * sum(instruction.works for instruction in instructions)
        for instructions, times in executed(parse(text), trips, fused=False)
    )


def traffic(text: str, trips: int = 1) -> int:
    """Bytes that the program reads from and writes to a device's main memory (HBM): the sum of `movers`."""
    return sum(size for _, size in movers(text, trips))


def movers(text: str, trips: int = 1) -> Iterator[tuple[Instruction, int]]:
    """What each instruction that runs moves, in bytes of main memory, in all of its runs.

    Every instruction reads its operands and writes its results once, a fusion as one instruction; of an operand that a
    fusion only slices, the slices. Arrays in memory on the chip do not count. `cost_analysis` counts those too: five
    times as much, where the batch of a device is small.
    """
    computations = parse(text)
    for instructions, times in executed(computations, trips, fused=False):
        in_hbm: dict[str, int] = {}
        for instruction in instructions:
            name, shape, operation, operands, attributes = instruction
            given = arrays(shape)
            in_hbm[name] = sum(array.stored for array in given if not array.on_chip)
            if not instruction.works:
                continue
            read, written = [in_hbm.get(operand, 0) for operand in operands], in_hbm[name]
            if operation.startswith(("slice", "dynamic-slice")):  # reads no more than it gives
                part = given[-2 if operation.endswith("-start") else -1]
                read, written = [part.stored * bool(read[0])], part.stored * (not part.on_chip)
            elif operation == "fusion" and (called := re.search(r"calls=%([\w.-]+)", attributes)):
                slices = sliced(computations.get(called.group(1), []))
                read = [min(size, slices.get(str(i), size)) for i, size in enumerate(read)]
            elif operation.endswith("-start") and operation != "all-reduce-start":  # the result holds the operands too
                read = []
            yield instruction, times * (written + sum(read))


def by_source(text: str, trips: int = 1) -> Counter:
    """`traffic` by the line of Python that it comes from, as "batch_norm.py:57 normalized, backward".

    XLA knows a fusion by the line of its result; all that it moves counts there. "backward" is what JAX transposed.
    """
    lines, fusions, found = _lines(text), parse(text), Counter()
    for instruction, size in movers(text, trips):
        called = re.search(r"calls=%([\w.-]+)", instruction.attributes)
        inside = reversed(fusions.get(called.group(1), [])) if called else ()
        texts = (one.attributes for one in (instruction, *inside))
        attributes = next((text for text in texts if "stack_frame_id=" in text), instruction.attributes)
        frame = re.search(r"stack_frame_id=(\d+)", attributes)
        backward = ", backward" if "transpose(jvp" in attributes else ""
        found[(lines.get(frame.group(1), "") if frame else "unknown") + backward] += size
    return found


def _lines(text: str) -> dict[str, str]:
    """{stack_frame_id: the innermost line of Python} of the tables in a program's text."""
    tables = {title: body for title, body in re.findall(r"^(\w+)\n((?:\d+ .*\n)+)", text, re.M)}
    names = {title: dict(re.findall(r'^(\d+) "(.*)"$', tables.get(title, ""), re.M)) for title in _NAME_TABLES}
    location = r"^(\d+) {file_name_id=(\d+) function_name_id=(\d+) line=(\d+)"
    places = {
        number: f"{names['FileNames'][file].rpartition('/')[2]}:{line} {names['FunctionNames'][function]}"
        for number, file, function, line in re.findall(location, tables.get("FileLocations", ""), re.M)
    }
    frames = re.findall(r"^(\d+) {file_location_id=(\d+)", tables.get("StackFrames", ""), re.M)
    return {frame: places[place] for frame, place in frames}


def sliced(fused: list[Instruction]) -> dict[str, int]:
    """{number: bytes} of those operands of a fusion that nothing but slices of it look at: how much they take."""
    sizes: dict[str, int] = {}
    for parameter in fused:
        if parameter.operation == "parameter":
            users = [instruction for instruction in fused if parameter.name in instruction.operands]
            if users and all(user.operation in ("slice", "dynamic-slice") for user in users):
                sizes[parameter.operands[0]] = sum(array.stored for user in users for array in arrays(user.shape))
    return sizes


class Array(NamedTuple):
    dtype: str  # such as bfloat16
    size: int  # bytes
    stored: int  # bytes in memory, where the last axes fill up whole tiles
    on_chip: bool


def arrays(shape: str) -> list[Array]:
    """The arrays of a shape, from inside tuples too."""
    found = []
    for letters, bits, dims, layout in re.findall(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\](\{[^}]*\})?", shape):
        item, sizes = int(bits or 8) / 8, [int(size) for size in dims.split(",") if size]
        order, _, tiling = layout.strip("{}").partition(":")
        stored = list(sizes)
        if tile := re.match(r"T\(([\d,]+)\)", tiling):
            axes = [int(axis) for axis in order.split(",") if axis]  # the last one in memory comes first
            for axis, n in zip(axes, reversed(tile.group(1).split(",")), strict=False):
                stored[axis] = -(-sizes[axis] // int(n)) * int(n)
        dtype = _DTYPES.get(letters, letters) + bits
        found.append(Array(dtype, int(math.prod(sizes) * item), int(math.prod(stored) * item), "S(" in tiling))
    return found
