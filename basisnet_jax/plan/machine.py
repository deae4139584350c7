"""What the plan needs to know of a machine that is not there, and how a program that is too large for it is told."""

from typing import NamedTuple

import jax


class Chip(NamedTuple):
    """One device of a machine, by the figures that its maker publishes."""

    flops: dict[str, float]  # a second at most, by the config's dtype
    bandwidth: float  # of its memory, bytes a second
    memory: int  # bytes of HBM
    available: float  # bytes of it for a program


class Machine(NamedTuple):
    """Devices of one kind, as JAX sees them."""

    platform: str  # tpu or gpu
    devices: list[jax.Device]
    chip: Chip  # the figures of one device


class TooLarge(Exception):
    """A compiled step needs more bytes of memory than a device has for it."""

    def __init__(self, needed: float, available: float):
        super().__init__(needed, available)
        self.needed, self.available = needed, available


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of one device, by what they hold. Outputs in the place of donated arguments need none of their own."""
    sizes = compiled.memory_analysis()
    return {
        "arguments": sizes.argument_size_in_bytes,
        "outputs": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "code": sizes.generated_code_size_in_bytes,
    }


def fitting(compiled: jax.stages.Compiled, chip: Chip) -> jax.stages.Compiled:
    """The program, if a device has the memory for it; else raises `TooLarge`."""
    if (needed := sum(memory(compiled).values())) > chip.available:
        raise TooLarge(needed, chip.available)
    return compiled
