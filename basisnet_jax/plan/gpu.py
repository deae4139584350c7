"""NVIDIA's GPUs to plan for: their figures, JAX's devices of a topology, and the plugin that compiles for them.

The compiler is that of JAX's CUDA plugin. It needs no GPU, but it has none to measure on: where a card would choose the
fastest of several kernels, it takes a default.
"""

import importlib.metadata
import math
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from basisnet_jax.errors import UserError
from basisnet_jax.plan.machine import Chip, Machine, fitting

PLUGIN = "jax-cuda13-plugin"


class Card(NamedTuple):
    """A card in its SXM form."""

    flops: float  # a second, of dense products in bfloat16; in float32, which JAX computes as TF32, half of it
    bandwidth: float  # of its memory, bytes a second
    memory: int  # bytes of HBM
    capability: tuple[int, int]
    multiprocessors: int
    lanes: int  # float32 units of a multiprocessor
    shared_memory: int  # KiB of a multiprocessor
    cache: int  # bytes of L2
    clock: float  # GHz, boost


# FLOPs and bandwidth: NVIDIA's data sheets of A100 80GB SXM, H100 SXM and H200 SXM, and that of HGX B200 divided by its
# 8 GPUs. Those of the last three tell of sparse products, twice as many. Multiprocessors, units and shared memory:
# NVIDIA's white papers of the architectures, and "technical specifications per compute capability" in the CUDA
# programming guide. Bytes of memory and L2, and clocks, are what the driver tells: the repository openxla/xla has them
# in xla/backends/gpu/target_config/specs.
CHIPS = {
    "a100": Card(312e12, 2.039e12, 85_100_068_864, (8, 0), 108, 64, 164, 41_943_040, 1.41),
    "h100": Card(989e12, 3.35e12, 84_942_979_072, (9, 0), 132, 128, 228, 52_428_800, 1.98),
    "h200": Card(989e12, 4.8e12, 151_397_597_184, (9, 0), 132, 128, 228, 52_428_800, 1.98),
    "b200": Card(2250e12, 8e12, 191_514_411_008, (10, 0), 148, 128, 228, 132_644_864, 1.965),
}
SHAPES = "h100:8, or h100:8x4 for 4 hosts of 8"

# JAX takes this share of a card's memory when it starts, and a program has no more, unless the environment's
# XLA_CLIENT_MEM_FRACTION says otherwise ("GPU memory allocation" in JAX's documentation).
SHARE = 0.75
FRACTIONS = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"  # today's name, and the older one

# What neither the compiler nor the figures above tell.
UNKNOWN = (
    "which kernels XLA chooses by measuring on the card, and how long they take",
    "the time to launch kernels: CUDA graphs join many launches into one",
    "the time of collectives, and how much of it other work hides",
    "what the L2 cache saves: the real traffic can be less",
    "memory for work space of cuDNN and cuBLAS, buffers of NCCL, and fragmentation",
    "the time to load images",
)


def find_machine(topology: str) -> Machine:
    """The GPUs of a topology: "h100:8" or, devices of a host times hosts, "h100:8x4".

    Raises:
      UserError: the plugin is missing or of another version than JAX, or there is no such topology.
    """
    install = f"pip install '{PLUGIN}=={jax.__version__}'"
    try:
        version = importlib.metadata.version(PLUGIN)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"compiling for a GPU needs {PLUGIN}: {install}, or the extra gpu-plan") from None
    if version != jax.__version__:
        raise UserError(f"{PLUGIN} is {version} and jax {jax.__version__}, expected the same version: {install}")
    name, _, shape = topology.partition(":")
    if not (match := re.fullmatch(r"([1-9]\d{0,3})(?:x([1-9]\d{0,3}))?", shape)):
        raise UserError(f"--topology={topology!r}, expected a card and how many, such as {SHAPES}")
    jax.config.update("jax_platforms", "cpu")  # what is computed on the way needs no accelerator, should there be one
    of_host, hosts = match.group(1), match.group(2) or "1"
    card, share = CHIPS[name], share_of_memory()
    flops = {"bfloat16": card.flops, "float32": card.flops / 2}
    described = topologies.get_topology_desc(
        platform="cuda", target_config=target_config(name), topology=f"1x{hosts}x{of_host}"
    )
    return Machine("gpu", described.devices, Chip(flops, card.bandwidth, card.memory, share * card.memory))


def share_of_memory() -> float:
    """What JAX takes of a card's memory."""
    name = next((name for name in FRACTIONS if name in os.environ), FRACTIONS[0])
    given = os.environ.get(name, str(SHARE))
    try:
        if (share := float(given)) > 0:
            return share
    except ValueError:
        pass
    raise UserError(f"{name}={given!r}, expected a number above 0, such as {SHARE}")


def compile(lowered: jax.stages.Lowered, chip: Chip) -> jax.stages.Compiled:
    """The program of one device. The compiler makes one of any size, so what is too large raises `TooLarge` here."""
    cached = jax.config.jax_persistent_cache_min_compile_time_secs
    # JAX would write the program to its persistent cache, from which it can read none without a card.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    try:
        compiled = lowered.compile()
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", cached)
    return fitting(compiled, chip)


def target_config(name: str) -> str:
    """A card as XLA wants it described: a GpuTargetConfigProto as text.

    The compiler ends the process if the limits of dimensions are missing. Those, the warp and the registers are the
    same for all compute capabilities of CHIPS (CUDA programming guide). A block can have 1 KiB less of shared memory
    than its multiprocessor. The versions are the oldest that jax[cuda13] 0.10.2 runs with.
    """
    card = CHIPS[name]
    major, minor = card.capability
    accelerated = "feature_extension: ACCELERATED_FEATURES" if major > 8 else ""  # sm_90a: with Hopper's own products
    return f"""
        gpu_device_info {{
          name: "NVIDIA {name.upper()}"
          device_vendor: "NVIDIA Corporation"
          cuda_compute_capability {{ major: {major} minor: {minor} {accelerated} }}
          core_count: {card.multiprocessors}
          fpus_per_core: {card.lanes}
          clock_rate_ghz: {card.clock}
          device_memory_size: {card.memory}
          memory_bandwidth: {card.bandwidth:.0f}
          l2_cache_size: {card.cache}
          shared_memory_per_core: {card.shared_memory * 2**10}
          shared_memory_per_block: {48 * 2**10}
          shared_memory_per_block_optin: {(card.shared_memory - 1) * 2**10}
          registers_per_core_limit: 65536
          registers_per_block_limit: 65536
          threads_per_warp: 32
          threads_per_block_limit: 1024
          threads_per_core_limit: 2048
          thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
          dnn_version: "9.12.0"
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
        device_description_str: "NVIDIA {name.upper()}"
    """
