"""A training run on a TPU or GPU that is not there: its step compiled for it, and what that says of memory and time.

The program is the run's own: the config's model, optimizer, shardings and donated state. Nothing is computed and no
array of the model's size is allocated. What is counted is read from the compiled program of one device.
"""

import time

import jax
import jax.numpy as jnp
import ml_collections
import tensorflow_datasets as tfds
from jax.sharding import Mesh

from basisnet_jax import basis, madds, models, preprocess
from basisnet_jax.configs import ranges
from basisnet_jax.data import pipeline
from basisnet_jax.data.source import Source
from basisnet_jax.distributed import partition
from basisnet_jax.errors import UserError
from basisnet_jax.ops import platforms
from basisnet_jax.plan import flops, gpu, hlo, tpu
from basisnet_jax.plan.machine import Machine, TooLarge, memory
from basisnet_jax.training import distillation
from basisnet_jax.training.step import build_step

TARGETS = {"tpu": tpu, "gpu": gpu}

# TFDS knows a dataset's sizes only once it is prepared. As published, for those too large to prepare for a plan:
PUBLISHED = {"imagenet2012": {"train": 1_281_167, "validation": 50_000}}


def plan(config: ml_collections.ConfigDict, topology: str, examples: int | None = None) -> dict:
    """What one training step of `config` needs of every device of `topology`, and how fast it can be at best.

    Args:
      config: of a training run.
      topology: chip and shape, such as "v5e:16x16" or "h100:8".
      examples: in the training split; None looks them up.

    Returns:
      Plain data: memory in bytes, FLOPs and traffic in bytes of a device and step, collectives, bounds in seconds, and
      what is unknown. If the batch does not fit, "fits" is False and "proposal" the same for the largest batch / 2^k
      that compiled, or None. "bytes_accessed" is of a TPU only, "launches" of a GPU.

    Raises:
      UserError: the compiler is missing; the topology is unknown or its devices do not divide the batch.
    """
    machine = find_machine(topology)
    source = None if config.num_classes else Source.find(config)
    config = source.completed(config) if source else config
    examples, unknown = (examples, None) if examples else train_examples(config, source)
    if examples and (steps_per_epoch := examples // config.batch_size):
        pipeline.total_steps(config, steps_per_epoch)  # found before compiling
    report = {"topology": topology, **of_batch(config, machine, examples)}
    if unknown:
        report["examples_unknown"] = unknown
    if not report["fits"]:
        report["proposal"] = smaller(config, machine, examples, report["needed"] / report["available"])
    return report


def find_machine(topology: str) -> Machine:
    """The devices that a topology has, with the figures of their chip.

    Raises:
      UserError: there is no such topology, or what compiles for it is not installed.
    """
    for target in TARGETS.values():
        if topology.partition(":")[0] in target.CHIPS:
            return target.find_machine(topology)
    chips = ", ".join([*tpu.CHIPS, *gpu.CHIPS])
    shapes = f"{tpu.SHAPES}; {gpu.SHAPES}"
    raise UserError(f"--topology={topology!r}, expected a chip ({chips}) and a shape, such as {shapes}")


def of_batch(config, machine: Machine, examples: int | None) -> dict:
    """The plan for the batch of the config as it is."""
    platform, devices, chip = machine
    report = {
        "platform": platform,
        "devices": len(devices),
        "batch_size": config.batch_size,
        "fsdp": config.fsdp or len(devices),
        "dtype": config.dtype,
        "hbm": chip.memory,
        "available": chip.available,
    }
    begin, target = time.perf_counter(), TARGETS[platform]
    with platforms.paths_for(platform):
        share = config.batch_size // config.accumulate // len(devices)
        model = models.create_abstract(config)
        report["paths"] = madds.execution(madds.count(model, preprocess.of(config).shape, share))
        report["mixed_again"] = any(layer.mixes_again for layer in basis.basis_layers(model).values())
        mesh = partition.create_mesh(config.batch_size, config.fsdp, devices)
        traced = trace(config, models.abstract(model), mesh, examples)
        lowered = traced.lower()
    try:
        compiled = target.compile(lowered, chip)
    except TooLarge as error:
        return report | {"fits": False, "needed": error.needed, "available": error.available}
    report |= {"fits": True, "compile_seconds": time.perf_counter() - begin}

    report |= of_program(traced, compiled, machine, config)
    report["training"] = training(config, examples, report["seconds"]["step"]) if examples else None
    return report | {"unknown": list(target.UNKNOWN)}


def of_program(traced: jax.stages.Traced, compiled: jax.stages.Compiled, machine: Machine, config) -> dict:
    """What the compiled step needs of one device."""
    # XLA's figures are of one pass through a loop, and the only loop is that of `config.accumulate`.
    text, passes, costs, sizes = compiled.as_text(), config.accumulate, compiled.cost_analysis(), memory(compiled)
    if machine.platform == "tpu":
        counts = {"flops": costs["flops"] * passes, "bytes_accessed": costs["bytes accessed"] * passes}
    else:
        counts = {"flops": flops.count(traced.jaxpr) / len(machine.devices), "launches": hlo.launches(text, passes)}
    traffic, peak = hlo.traffic(text, passes), machine.chip.flops[config.dtype]
    seconds = {"flops": counts["flops"] / peak, "traffic": traffic / machine.chip.bandwidth}
    bound = max(seconds.values())
    return {
        "memory": sizes | {"total": sum(sizes.values()), "aliased": compiled.memory_analysis().alias_size_in_bytes},
        **counts,
        "hbm_traffic": traffic,
        "intensity": counts["flops"] / traffic,
        "balance": peak / machine.chip.bandwidth,
        "bound_by": "compute" if seconds["flops"] == bound else "memory",
        "seconds": seconds | {"step": bound},
        "collectives": hlo.collectives(text, passes),
    }


def smaller(config, machine: Machine, examples: int | None, excess: float) -> dict | None:
    """The plan of the largest batch / 2^k that fits. Scaling the need says which cannot; compiling, which does."""
    config = config.copy_and_resolve_references()
    while config.batch_size % (2 * len(machine.devices)) == 0:
        config.batch_size //= 2
        excess /= 2
        if excess <= 1 and (report := of_batch(config, machine, examples))["fits"]:
            return report
    return None


def trace(config, functions: models.Functional, mesh: Mesh, examples: int | None) -> jax.stages.Traced:
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
    return step.run.trace(placed(state, step.shardings), batch, *constants)


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
    if report["platform"] == "gpu":
        share = report["available"] / report["hbm"]
        lines.append(f"JAX takes {share:.0%} of the {gib(report['hbm'])} of a card; XLA_CLIENT_MEM_FRACTION changes it")
    memory, seconds = report["memory"], {name: f"{1e3 * value:.3f} ms" for name, value in report["seconds"].items()}
    notes = {
        "outputs": f"and {gib(memory['aliased'])} in the place of arguments",
        "total": f"of {gib(report['available'])}: fits",
    }
    lines += ["", "memory of a device"]
    lines += [row(name, gib(memory[name]), notes.get(name, "")) for name in memory if name != "aliased"]
    balance = f"to a byte of traffic; the chip's balance is {report['balance']:.0f}: {report['bound_by']}-bound"
    lines += ["", "work of a device in a step"]
    lines.append(row("FLOPs", f"{report['flops'] / 1e9:,.2f} G", f"{seconds['flops']} at the chip's peak"))
    if "bytes_accessed" in report:
        lines.append(row("bytes accessed", f"{report['bytes_accessed'] / 1e9:,.2f} GB", "in memory on the chip too"))
    lines.append(
        row("traffic of its HBM", f"{report['hbm_traffic'] / 1e9:,.2f} GB", f"{seconds['traffic']} at the peak")
    )
    lines.append(row("FLOPs", f"{report['intensity']:.2f}", balance))
    if "launches" in report:
        lines.append(row("launches", f"{report['launches']:,}", "of kernels and libraries"))
    lines += ["", "collectives of a step"]
    for kind, of in report["collectives"].items():
        types = ", ".join(f"{size / 1e6:,.2f} MB {dtype}" for dtype, size in of["types"].items())
        lines.append(row(kind, of["count"], types))
    lines += ["", f"a step takes at least {seconds['step']}, collectives not counted"]
    if run := report["training"]:
        length = f"{run['steps']} steps, {run['epochs']:g} epochs of {run['examples']} examples"
        lines.append(f"training takes at least {run['hours']:.2f} h: {length}")
    else:
        lines.append(f"time to train: unknown; {report['examples_unknown']}")
    lines += ["", "not known without the machine", *(f"  {what}" for what in report["unknown"])]
    return "\n".join([*lines, "", f"compiled in {report['compile_seconds']:.0f} s"])


def row(name: str, value, note: str) -> str:
    return f"  {name:<20}{value:>14}  {note}".rstrip()


def gib(size: float) -> str:
    return f"{size / 2**30:.3f} GiB"
