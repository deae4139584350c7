"""A training run on a TPU that is not there: its step compiled for the chip, and what that says of memory and time.

The program is the run's own: the config's model, optimizer, shardings and donated state. Nothing is computed and no
array of the model's size is allocated. What is counted is read from the compiled program of one device.
"""

import importlib.util
import math
import os
import re
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import tensorflow_datasets as tfds
from jax.experimental import topologies
from jax.sharding import Mesh

from basisnet_jax import basis, madds, models, preprocess
from basisnet_jax.configs import ranges
from basisnet_jax.data import pipeline
from basisnet_jax.data.source import Source
from basisnet_jax.distributed import partition
from basisnet_jax.errors import UserError
from basisnet_jax.ops import platforms
from basisnet_jax.plan import hlo
from basisnet_jax.training import distillation
from basisnet_jax.training.step import build_step


class Chip(NamedTuple):
    flops: float  # a second, bfloat16
    bandwidth: float  # of its memory, bytes a second
    memory: int  # bytes of HBM; the compiler keeps a part for itself, 0.25 GiB of a v5e's


# "Peak compute per chip (bf16)", "HBM bandwidth per chip" and "HBM capacity per chip" of Google Cloud's documentation
# of each version (Cloud TPU, "TPU architecture": v4, v5e, v5p and v6e pages).
CHIPS = {
    "v4": Chip(275e12, 1228e9, 32 * 2**30),
    "v5e": Chip(197e12, 819e9, 16 * 2**30),
    "v5p": Chip(459e12, 2765e9, 95 * 2**30),
    "v6e": Chip(918e12, 1640e9, 32 * 2**30),
}

# TFDS knows a dataset's sizes only once it is prepared. As published, for those too large to prepare for a plan:
PUBLISHED = {"imagenet2012": {"train": 1_281_167, "validation": 50_000}}

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


def plan(config: ml_collections.ConfigDict, topology: str, examples: int | None = None) -> dict:
    """What one training step of `config` needs of every device of `topology`, and how fast it can be at best.

    Args:
      config: of a training run.
      topology: chip and shape, such as "v5e:16x16".
      examples: in the training split; None looks them up.

    Returns:
      Plain data: memory in bytes, FLOPs and bytes accessed of a device and step, collectives, bounds in seconds. If the
      batch does not fit, "fits" is False and "proposal" the same for the largest batch / 2^k that compiled, or None.

    Raises:
      UserError: libtpu is missing; the topology is unknown or its devices do not divide the batch.
    """
    devices, chip = find_devices(topology)
    source = None if config.num_classes else Source.find(config)
    config = source.completed(config) if source else config
    examples, unknown = (examples, None) if examples else train_examples(config, source)
    if examples and (steps_per_epoch := examples // config.batch_size):
        pipeline.total_steps(config, steps_per_epoch)  # found before compiling
    report = {"topology": topology, **of_batch(config, devices, chip, examples)}
    if unknown:
        report["examples_unknown"] = unknown
    if not report["fits"]:
        report["proposal"] = smaller(config, devices, chip, examples, report["needed"] / report["available"])
    return report


def find_devices(topology: str) -> tuple[list, Chip]:
    """The devices that JAX sees on a topology, and each one's share of its chip."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs libtpu: pip install 'basisnet_jax[tpu-plan]'")
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        known = ", ".join(CHIPS)
        raise UserError(f"--topology={topology!r}, expected a chip ({known}) and a shape, such as v5e:4x4 or v4:2x2x1")
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
    return devices, Chip(*(figure * chips / len(devices) for figure in CHIPS[name]))


def of_batch(config, devices, chip: Chip, examples: int | None) -> dict:
    """The plan for the batch of the config as it is."""
    report = {
        "devices": len(devices),
        "batch_size": config.batch_size,
        "fsdp": config.fsdp or len(devices),
        "dtype": config.dtype,
        "hbm": chip.memory,
    }
    begin = time.perf_counter()
    with platforms.paths_for("tpu"):
        share = config.batch_size // config.accumulate // len(devices)
        model = models.create_abstract(config)
        report["paths"] = madds.execution(madds.count(model, preprocess.of(config).shape, share))
        report["mixed_again"] = any(layer.mixes_again for layer in basis.basis_layers(model).values())
        mesh = partition.create_mesh(config.batch_size, config.fsdp, devices)
        lowered = lower(config, models.abstract(model), mesh, examples)
    try:
        compiled = lowered.compile(COMPILER_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        if not (needs := memory_needed(str(error))):
            raise
        return report | dict(zip(("fits", "needed", "available"), (False, *needs), strict=True))
    report |= {"fits": True, "compile_seconds": time.perf_counter() - begin}

    sizes, costs = compiled.memory_analysis(), compiled.cost_analysis()
    memory = {
        "arguments": sizes.argument_size_in_bytes,
        "outputs": sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "code": sizes.generated_code_size_in_bytes,
    }
    # XLA's figures are of one pass through a loop, and the only loop is that of `config.accumulate`.
    text, passes = compiled.as_text(), config.accumulate
    flops, traffic = costs["flops"] * passes, hlo.traffic(text, passes)
    seconds = {"flops": flops / chip.flops, "traffic": traffic / chip.bandwidth}
    bound = max(seconds.values())
    return report | {
        "memory": memory | {"total": sum(memory.values()), "aliased": sizes.alias_size_in_bytes},
        "flops": flops,
        "bytes_accessed": costs["bytes accessed"] * passes,
        "hbm_traffic": traffic,
        "intensity": flops / traffic,
        "balance": chip.flops / chip.bandwidth,
        "bound_by": "compute" if seconds["flops"] == bound else "memory",
        "seconds": seconds | {"step": bound},
        "collectives": hlo.collectives(text, passes),
        "training": training(config, examples, bound) if examples else None,
    }


def smaller(config, devices, chip: Chip, examples: int | None, excess: float) -> dict | None:
    """The plan of the largest batch / 2^k that fits. Scaling the need says which cannot; compiling, which does."""
    config = config.copy_and_resolve_references()
    while config.batch_size % (2 * len(devices)) == 0:
        config.batch_size //= 2
        excess /= 2
        if excess <= 1 and (report := of_batch(config, devices, chip, examples))["fits"]:
            return report
    return None


def lower(config, functions: models.Functional, mesh: Mesh, examples: int | None) -> jax.stages.Lowered:
    """The train step of a run, from shapes alone (`models.abstract`), on a mesh of devices that may not exist."""
    steps_per_epoch = (examples or 1_000 * config.batch_size) // config.batch_size  # sets constants of schedules only
    if not steps_per_epoch:
        raise UserError(f"config.batch_size is {config.batch_size}, which the {examples} training examples do not fill")
    over_batch, replicated = partition.over_batch(mesh), partition.replicated(mesh)

    def placed(shapes, shardings):
        return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings)

    size, images = config.batch_size, (config.image_size, config.image_size, config.channels)
    batch = {
        "image": jax.ShapeDtypeStruct((size, *images), jnp.uint8, sharding=over_batch),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=over_batch),
    }
    constants = [placed(jax.eval_shape(jax.random.key, config.seed), replicated)]
    teacher, logits = distillation.load(config.distillation, config.num_classes, config.channels), None
    if teacher and config.distillation.cache:
        batch["teacher"] = jax.ShapeDtypeStruct((size, config.num_classes), jnp.float16, sharding=over_batch)
    elif teacher:
        constants.append(placed(teacher.weights, partition.of_state(teacher.weights, mesh)))
        logits = teacher.logits
    step = build_step(config, functions, steps_per_epoch, mesh, logits)
    state = jax.eval_shape(step.create_state, functions.params, functions.batch_stats)
    return step.run.lower(placed(state, step.shardings), batch, *constants)


def memory_needed(message: str) -> tuple[float, float] | None:
    """Bytes needed and bytes there, of XLA's message that HBM does not suffice; None of another message."""
    size = r"([\d.]+)([KMGT]?)"
    forms = rf"HLO temporaries \({size}\) exceeds available HBM \({size}\)", rf"Used {size} of {size} hbm"
    for form in forms:
        if match := re.search(form, message):
            figures = match.groups()
            return tuple(float(n) * 1024 ** " KMGT".index(unit or " ") for n, unit in (figures[:2], figures[2:]))
    return None


def train_examples(config, source: Source | None = None) -> tuple[int | None, str | None]:
    """How many examples the training split has, or why that is not known; `source` as for `pipeline.open`."""
    sizes = PUBLISHED.get(config.dataset)
    try:
        data = None if sizes else pipeline.open(config, source)
    except UserError as error:
        return None, f"{str(error).splitlines()[0]} (give --examples=N)"
    if data:
        count = data.num_examples(config.train_split, "config.train_split")
    else:
        infos = {name: tfds.core.SplitInfo(name=name, shard_lengths=[n], num_bytes=0) for name, n in sizes.items()}
        try:
            parts = tfds.core.ReadInstruction.from_spec(config.train_split).to_absolute(infos)
        except ValueError:
            raise ranges.wrong("train_split", config.train_split, f"a split: {', '.join(sizes)}") from None
        count = sum(len(range(sizes[part.splitname])[part.from_ : part.to]) for part in parts)
    if not count:
        raise ranges.wrong("train_split", config.train_split, "a split with examples in it")
    return count, None


def training(config, examples: int, bound: float) -> dict:
    steps = pipeline.total_steps(config, examples // config.batch_size)
    return {"examples": examples, "epochs": config.num_epochs, "steps": steps, "hours": steps * bound / 3600}


def table(report: dict) -> str:
    """The plan as text."""
    devices, batch = report["devices"], report["batch_size"]
    lines = [f"{report['topology']}: {devices} devices, batch {batch} ({batch // devices} a device), {report['dtype']}"]
    if not report["fits"]:
        needed, available, proposal = gib(report["needed"]), gib(report["available"]), report["proposal"]
        lines.append(f"DOES NOT FIT: a device needs {needed} or more and has {available}")
        if proposal is None:
            return "\n".join([*lines, "no smaller batch / 2^k that the devices divide fits either"])
        lines.append(f"--config.batch_size={proposal['batch_size']} fits (found by compiling); its plan:")
        return "\n".join([*lines, "", table(report | proposal)])

    if report["paths"]:
        lines.append(f"paths of the layers with bases: {report['paths']}")
        done = "mixed again for" if report["mixed_again"] else "kept for"
        lines.append(f"the kernels of a batch are {done} the backward pass")
    memory, seconds = report["memory"], {name: f"{1e3 * value:.3f} ms" for name, value in report["seconds"].items()}
    notes = {
        "outputs": f"and {gib(memory['aliased'])} in the place of arguments",
        "total": f"of {gib(report['hbm'])}: fits",
    }
    lines += ["", "memory of a device"]
    lines += [row(name, gib(memory[name]), notes.get(name, "")) for name in memory if name != "aliased"]
    balance = f"to a byte of traffic; the chip's balance is {report['balance']:.0f}: {report['bound_by']}-bound"
    lines += ["", "work of a device in a step"]
    lines.append(row("FLOPs", f"{report['flops'] / 1e9:,.2f} G", f"{seconds['flops']} at the chip's peak"))
    lines.append(row("bytes accessed", f"{report['bytes_accessed'] / 1e9:,.2f} GB", "in memory on the chip too"))
    lines.append(
        row("traffic of its HBM", f"{report['hbm_traffic'] / 1e9:,.2f} GB", f"{seconds['traffic']} at the peak")
    )
    lines.append(row("FLOPs", f"{report['intensity']:.2f}", balance))
    lines += ["", "collectives of a step"]
    for kind, of in report["collectives"].items():
        lines.append(row(kind, of["count"], f"{of['bytes'] / 1e6:,.2f} MB"))
    lines += ["", f"a step takes at least {seconds['step']}, collectives not counted"]
    if run := report["training"]:
        length = f"{run['steps']} steps, {run['epochs']:g} epochs of {run['examples']} examples"
        lines.append(f"training takes at least {run['hours']:.2f} h: {length}")
    else:
        lines.append(f"time to train: unknown; {report['examples_unknown']}")
    return "\n".join([*lines, f"compiled in {report['compile_seconds']:.0f} s"])


def row(name: str, value, note: str) -> str:
    return f"  {name:<20}{value:>14}  {note}".rstrip()


def gib(size: float) -> str:
    return f"{size / 2**30:.3f} GiB"
