"""TPUs to plan for: their figures, JAX's devices of a topology, and libtpu, which compiles for them."""

import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from basisnet_jax.errors import UserError
from basisnet_jax.plan.machine import Chip, Machine, TooLarge, fitting

# FLOPs and bytes a second, and GiB: "Peak compute per chip (bf16)", "HBM bandwidth per chip" and "HBM capacity per
# chip" of Google Cloud's documentation of each version (Cloud TPU, "TPU architecture": v4, v5e, v5p and v6e pages).
# Products of float32 arrays run in bfloat16 too. The compiler keeps a part of HBM for itself, 0.25 GiB of a v5e's.
CHIPS = {
    name: Chip(dict.fromkeys(("bfloat16", "float32"), flops), bandwidth, gib * 2**30, gib * 2**30)
    for name, flops, bandwidth, gib in (
        ("v4", 275e12, 1228e9, 32),
        ("v5e", 197e12, 819e9, 16),
        ("v5p", 459e12, 2765e9, 95),
        ("v6e", 918e12, 1640e9, 32),
    )
}
SHAPES = "v5e:4x4 or v4:2x2x1"

# What neither the compiler nor the figures above tell.
UNKNOWN = ("the time of collectives, and how much of it is hidden behind other work", "the time to load images")

# The compiler searches for the best window of each fusion. Not to search those of more instructions takes a fifth off
# its time; and left memory and traffic of imagenet_basisnet_mv3 on v5e:16x16 as they were.
COMPILER_OPTIONS = {"xla_jf_fusion_max_instruction_count_for_window_config": 8}

# libtpu looks for the TPU of the machine that it runs on, and complains at length where there is none.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # the lock file of a killed process would end this one
}


def find_machine(topology: str) -> Machine:
    """The TPUs of a topology, such as "v5e:4x4": the devices that JAX sees, and each one's share of its chip.

    Raises:
      UserError: libtpu is missing, or there is no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs libtpu: pip install 'basisnet_jax[tpu-plan]'")
    name, _, shape = topology.partition(":")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise UserError(f"--topology={topology!r}, expected a chip and its shape, such as {SHAPES}")
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")  # what is computed on the way needs no accelerator, should there be one
    chips = math.prod(map(int, shape.split("x")))
    single = {"chips_per_host_bounds": [1, 1, 1]} if chips == 1 else {}
    try:
        devices = topologies.get_topology_desc(topology, platform="tpu", **single).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise UserError(f"--topology={topology!r} does not exist: {reason}") from error
    share, chip = chips / len(devices), CHIPS[name]
    flops, memory = {dtype: share * peak for dtype, peak in chip.flops.items()}, int(share * chip.memory)
    return Machine("tpu", devices, Chip(flops, share * chip.bandwidth, memory, memory))


def compile(lowered: jax.stages.Lowered, chip: Chip) -> jax.stages.Compiled:
    """The program of one device. What is too large raises `TooLarge`.

    The compiler itself refuses most of that. It has accepted programs whose memory adds up to more than there is.
    """
    try:
        return fitting(lowered.compile(COMPILER_OPTIONS), chip)
    except jax.errors.JaxRuntimeError as error:
        if not (needs := memory_needed(str(error))):
            raise
        raise TooLarge(*needs) from error


def memory_needed(message: str) -> tuple[float, float] | None:
    """Bytes needed and bytes there, of XLA's message that HBM does not suffice; None of another message."""
    size = r"([\d.]+)([KMGT]?)"
    forms = rf"HLO temporaries \({size}\) exceeds available HBM \({size}\)", rf"Used {size} of {size} hbm"
    for form in forms:
        if match := re.search(form, message):
            figures = match.groups()
            return tuple(float(n) * 1024 ** " KMGT".index(unit or " ") for n, unit in (figures[:2], figures[2:]))
    return None
