"""What this project costs on one GPU: is every path right, how long do its networks take, and PyTorch's beside them?

    python benchmarks/gpu.py [--quick] [--json FILE] [--until SECONDS] [--compile]

Needs no more than a training step does; PyTorch and timm are optional. In this order, each told when it is there:

1. Every path of ops/conv.py against one ordinary convolution per example, on this device, float32 with full precision:
   ||ours - reference|| / ||reference||, forward and of both gradients. Exit code 1 if one is above 1e-3.
2. Forward pass and step of a training run, bfloat16, 128 images on the device: BasisNet-16, static MobileNetV3-Large,
   CondConv-EfficientNet-B0 with 8 experts. The reference is BasisNet's preview and static network side by side.
3. Those that timm has too, in turns with it: forward (PyTorch in inference mode), and cross-entropy with SGD with
   momentum, no dropout. PyTorch has autocast and channels last, for MobileNetV3 cuDNN's trials of algorithms too. It is
   eager; with `--compile` MobileNetV3 comes by torch.compile as well.
4. As 2., 256 images; then float32, 128 images, with the precision of products that jax chooses by itself.
5. Which kernels take the time of a step of BasisNet-16, by jax's profiler.

Medians of turns of some steps each. `program_mb` is XLA's account of a program: arguments, results and temporaries,
donated memory once. `allocator_peak_mb` is the highest mark of jax's allocator in this process: it tells of a row only
where it rises. Programs are compiled side by side, and a row is timed as soon as its own are there, while others may
still compile on the CPU. Rows that have not begun after `--until` seconds (280) are left out.

`--quick` (minutes on a CPU) has 4 images of 64 px, the first stage of our networks, but all of PyTorch's, no CondConv.
"""

import collections
import concurrent.futures
import datetime
import functools
import gzip
import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import tempfile
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch shares the card

import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax
import synthesis
from basisnet_jax.configs import imagenet_basisnet_mv3, imagenet_condconv_efficientnet_b0, imagenet_static
from flax import nnx
from gpu_pytorch import MOMENTUM, PEERS, RATE, of_pytorch, timm, torch
from jax import lax
from preview_and_static import PreviewAndStatic

from basisnet_jax import models, preprocess
from basisnet_jax.ops import conv
from basisnet_jax.training.step import build_step

BEGAN = time.monotonic()
LIMIT = 1e-3  # of a path's relative error
REFERENCE = "preview + static"
NETWORKS = (REFERENCE, "BasisNet", "CondConv", "static")  # of those that need no other, the largest programs first
SHAPES = {  # (x, [*window, I / groups, O], stride)
    "1x1": ((4, 14, 14, 24), (1, 1, 24, 40), 1),
    "depthwise 3x3": ((4, 15, 15, 16), (3, 3, 1, 16), 1),
    "depthwise 3x3, stride 2": ((4, 15, 15, 16), (3, 3, 1, 16), 2),
    "depthwise 5x5": ((4, 14, 14, 16), (5, 5, 1, 16), 1),
    "dense 3x3": ((4, 14, 14, 16), (3, 3, 16, 24), 1),
    "dense 3x3 of images, stride 2": ((4, 32, 32, 3), (3, 3, 3, 16), 2),
}
# What is compiled together; the recipe is "run", as a training run steps, or "plain", as PyTorch does.
Job = collections.namedtuple("Job", ("network", "dtype", "images", "recipe"))


def one_by_one(x, kernels, *, strides, groups):
    """The readable reference of `conv.conv_per_example`."""
    layout = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups)
    pairs = zip(x[:, None], kernels, strict=True)
    return jnp.concatenate([lax.conv_general_dilated(x, k, (strides, strides), "SAME", **layout) for x, k in pairs])


def with_gradients(convolve, x, kernels, cotangent):
    y, gradients = jax.vjp(convolve, x, kernels)
    return {"forward": y, **dict(zip(("x", "kernels"), gradients(cotangent), strict=True))}


def correctness(pool, quick: bool) -> list[dict]:
    random, programs, rows = np.random.default_rng(0), {}, []
    for name, (x_shape, kernel_shape, stride) in SHAPES.items():
        if quick and "5x5" in name:  # long to compile
            continue
        arguments = dict(strides=stride, groups=x_shape[-1] // kernel_shape[-2])
        x, kernels = random.normal(size=x_shape), random.normal(size=(x_shape[0], *kernel_shape))
        y = jax.eval_shape(functools.partial(one_by_one, **arguments), x, kernels)
        inputs = [jnp.asarray(array, jnp.float32) for array in (x, kernels, random.normal(size=y.shape))]
        for path in (None, *conv.paths(x_shape, kernel_shape, **arguments)):
            convolve = functools.partial(conv.conv_per_example, path=path) if path else one_by_one
            function = functools.partial(with_gradients, functools.partial(convolve, **arguments))
            with jax.default_matmul_precision("highest"):
                programs[name, path] = pool.submit(jax.jit(function).lower(*inputs).compile), inputs
    found = {key: jax.device_get(program.result()(*inputs)) for key, (program, inputs) in programs.items()}
    for (name, path), ours in found.items():
        if path:
            expected = found[name, None]
            errors = {k: float(np.linalg.norm(ours[k] - e) / np.linalg.norm(e)) for k, e in expected.items()}
            rows.append({"name": f"{name}, {path}", **errors, "right": all(e <= LIMIT for e in errors.values())})
    return rows


def config_of(job: Job, quick: bool):
    config = {
        "static": imagenet_static.get_config,
        "CondConv": lambda: imagenet_condconv_efficientnet_b0.get_config("bases=8"),
    }.get(job.network, lambda: imagenet_basisnet_mv3.get_config(f"bases={4 if quick else 16}"))()
    config.dtype, config.batch_size, config.distillation.teacher = job.dtype, job.images, ""
    if quick:
        config.image_size, config.preview.image_size = 64, 32
        config.network.num_stages = config.preview.num_stages = 1
    if job.recipe == "plain":
        config.network.dropout, config.network.drop_connect = 0.0, 0.0 if job.network == "CondConv" else None
    return config


def plain_step(functions):
    """(create_state, step): cross-entropy and SGD with momentum, as `of_pytorch` has them."""
    tx = optax.sgd(RATE, MOMENTUM)

    def step(state, batch, key):
        def loss_fn(params):
            outputs, new_stats = functions.train(params, batch_stats, batch["image"], key)
            return optax.softmax_cross_entropy_with_integer_labels(outputs.logits, batch["label"]).mean(), new_stats

        params, batch_stats, opt_state = state
        (loss, batch_stats), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), batch_stats, opt_state), loss

    create = jax.jit(lambda params, batch_stats: (params, batch_stats, tx.init(params)))
    return create, jax.jit(step, donate_argnums=0)


@functools.cache
def batch_of(images: int, side: int, normalized: bool) -> dict[str, jax.Array]:
    make, dtype = (jax.random.normal, jnp.float32) if normalized else (jax.random.bits, jnp.uint8)
    key, shape = jax.random.key(0), (images, side, side, 3)
    return {"image": make(key, shape, dtype), "label": jax.random.randint(key, (images,), 0, 1000)}


def traced(job: Job, quick: bool) -> dict:
    """Three programs, not compiled yet, "forward", "step" and "create", which makes the step's state; their inputs."""
    config, plain = config_of(job, quick), job.recipe == "plain"
    make = PreviewAndStatic if job.network == REFERENCE else models.create
    # Of shapes alone: to draw the weights on the device would compile a program for each of them.
    functions = models.abstract(nnx.eval_shape(lambda: make(config)))
    weights = jax.tree.map(drawn, (functions.params, functions.batch_stats))
    create, step, *_ = plain_step(functions) if plain else build_step(config, functions, steps_per_epoch=1000)
    batch, key = batch_of(job.images, config.image_size, plain), jax.random.key(config.seed)

    def forward(params, batch_stats, images):
        return functions.evaluate(params, batch_stats, images if plain else preprocess.of(config).normalize(images))

    return {
        "step": step.lower(jax.eval_shape(create, *weights), batch, key),
        "forward": jax.jit(forward).lower(*weights, batch["image"]),
        "create": create.lower(*weights),
        "inputs": (weights, batch, key),
    }


def drawn(shape: jax.ShapeDtypeStruct) -> np.ndarray:
    """Weights in place of the initializers' draw: variances are 1, kernels keep the size of activations."""
    if len(shape.shape) < 2:
        return np.ones(shape.shape, shape.dtype)
    random = np.random.default_rng(math.prod(shape.shape))
    return (random.normal(size=shape.shape) / math.prod(shape.shape[-4:-1]) ** 0.5).astype(shape.dtype)


def compiled(lowered) -> tuple:
    begin = time.perf_counter()
    return lowered.compile(), time.perf_counter() - begin


def compile_all(pool, jobs: list[Job], entries: dict[Job, dict], flags) -> None:
    """Begins to compile them, each as soon as it is traced."""
    submitted, end = 0, BEGAN + flags.until
    for job in jobs:
        if time.monotonic() < end:
            entry = entries[job] = entries.get(job) or traced(job, flags.quick)
            entry |= {kind: pool.submit(compiled, entry[kind]) for kind in ("step", "forward", "create")}
            submitted += 3
    tell(f"{submitted} programs traced")


def runner(entry: dict, kind: str, steps: int):
    """A function that runs the program so many times and returns when they are done."""
    (weights, batch, key), program = entry["inputs"], entry[kind].result()[0]
    state = entry["create"].result()[0](*weights) if kind == "step" else jax.device_put(weights)

    def forward():
        for _ in range(steps):
            outputs = program(*state, batch["image"])
        jax.block_until_ready(outputs)

    def step():
        nonlocal state
        for _ in range(steps):
            state, metrics = program(state, batch, key)
        jax.block_until_ready((state, metrics))

    return step if kind == "step" else forward


def memory(program) -> dict[str, float]:
    found = {"program_mb": synthesis.memory(program)["peak"]}
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        found["allocator_peak_mb"] = statistics["peak_bytes_in_use"] / 1e6
    return found


def speed(job: Job, kind: str, entry: dict, reference: float | None, turns: int, steps: int) -> list[dict]:
    run, (program, seconds), times = runner(entry, kind, steps), entry[kind].result(), []
    for _ in range(turns + 1):  # the first does not count
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    ms = 1000 * float(np.median(times[1:])) / steps
    row = {"name": named(job, kind), "ours_ms": ms, "images_s": 1000 * job.images / ms, "compile_s": seconds}
    row |= {"reference_ms": reference, "ratio": ms / reference} if reference else {}
    return [row | memory(program)]


def against_pytorch(job: Job, kind: str, entry: dict, by_compiler: bool, turns: int, steps: int) -> list[dict]:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    (program, seconds), side = entry[kind].result(), entry["inputs"][1]["image"].shape[1]
    theirs = of_pytorch(job.network, job.images, kind == "step", side, steps, by_compiler)
    name = f"{named(job, kind)}, {PEERS[job.network]}{', torch.compile' if by_compiler else ''}"
    row = measure.compare(name, runner(entry, kind, steps), theirs, turns, steps)
    row |= {"images_s": 1000 * job.images / row["ours_ms"], "compile_s": seconds} | memory(program)
    if torch.cuda.is_available():
        row["reference_peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return [row]


def kernels(entry: dict, steps: int) -> list[dict]:
    """The five largest by time, of names that differ by their numbers alone, per step."""
    run = runner(entry, "step", steps)
    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        files = [*pathlib.Path(folder).rglob("*.trace.json.gz")]
        events = [event for file in files for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]]
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    totals = collections.Counter()
    for event in events:
        if "dur" in event and threads.get((event["pid"], event.get("tid")), "").startswith("Stream"):
            totals[re.sub(r"[\d._]+$", "", event["name"])] += event["dur"] / 1000 / steps  # from microseconds
    if not totals:
        raise LookupError(f"no events on a GPU's streams among {len(events)}, of {sorted(set(threads.values()))[:8]}")
    whole = totals.total()
    return [{"name": f"kernel {name}", "ours_ms": ms, "share": ms / whole} for name, ms in totals.most_common(5)]


def named(job: Job, kind: str) -> str:
    recipe = ", plain" if job.recipe == "plain" else ""
    return f"{job.network} {kind}, {job.dtype}, {job.images} images{recipe}"


def tell(line: str) -> None:
    print(f"[{time.monotonic() - BEGAN:.0f} s] {line}", flush=True)


def context() -> dict[str, str | None]:
    git = subprocess.run("git rev-parse HEAD", shell=True, cwd=pathlib.Path(__file__).parent, capture_output=True)
    return {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "torch": torch and torch.__version__,
        "float32_products": jax.config.jax_default_matmul_precision or "jax's default, TF32 where there is any",
        "date": datetime.date.today().isoformat(),
        "commit": git.stdout.decode().strip() or None,
    }


def add(rows: list[dict], about: dict, flags, name: str, function, *args) -> dict:
    """Appends the rows that the function makes, or one that says why it made none; tells and writes them. The first."""
    if time.monotonic() > BEGAN + flags.until:
        made = [{"name": name, "left_out": f"not begun after {flags.until:.0f} s"}]
    else:
        try:
            made = function(*args)
        except Exception as error:  # such as too little memory: the other rows are wanted still
            made = [{"name": name, "left_out": f"{type(error).__name__}: {error}".splitlines()[0]}]
    rows += made
    for row in made:
        tell(", ".join(f"{k} {v:.3g}" if isinstance(v, float) and v < 1e3 else f"{k} {v}" for k, v in row.items()))
    measure.write([row | about for row in rows], flags.json)
    return made[0]


def main() -> None:
    parser = measure.flags(__doc__)
    parser.add_argument("--until", type=float, default=280, metavar="SECONDS", help="after which no row begins; 280")
    parser.add_argument("--compile", action="store_true", help="MobileNetV3 by torch.compile too")
    flags = parser.parse_args()
    if not flags.quick and jax.default_backend() != "gpu":
        parser.error(f"jax sees no GPU, but {jax.devices()}; --quick runs anywhere")
    rows, entries, references, about = [], {}, {}, context()
    tell("; ".join(f"{name} {value}" for name, value in about.items()))
    images, turns, steps = (4, 2, 1) if flags.quick else (128, 10, 3)
    networks = [name for name in NETWORKS if not (flags.quick and name == "CondConv")]
    first = [Job(name, "bfloat16", images, "run") for name in networks]
    plain = [Job(name, "bfloat16", images, "plain") for name in PEERS if name in networks and timm]
    rest = [Job(name, *of, "run") for of in (("bfloat16", 256), ("float32", 128)) for name in networks]
    if flags.quick:
        rest = [Job("static", "float32", images, "run")]

    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    add(rows, about, flags, "correctness", correctness, pool, flags.quick)
    right = all(row.get("right") for row in rows)
    if not timm:
        tell("no PyTorch with timm here: its rows are left out")
    for jobs in (first + plain, rest):
        compile_all(pool, jobs, entries, flags)
        for job, kind in itertools.product(jobs, ("step", "forward")):
            name, entry = named(job, kind), entries.get(job, {})
            waits = [entry[program] for program in (kind, "create") if program in entry]
            concurrent.futures.wait(waits, timeout=max(0, BEGAN + flags.until - time.monotonic()))
            if job.recipe == "plain":
                for by_compiler in [False, True][: 2 if flags.compile and job.network == "static" else 1]:
                    add(rows, about, flags, name, against_pytorch, job, kind, entry, by_compiler, turns, steps)
            else:
                reference = references.get((kind, job[1:]))
                row = add(rows, about, flags, name, speed, job, kind, entry, reference, turns, steps)
                if job.network == REFERENCE:
                    references[kind, job[1:]] = row.get("ours_ms")
    add(rows, about, flags, "kernels", kernels, entries.get(first[1], {}), steps)
    columns = {"ours_ms": ".2f", "reference_ms": ".2f", "ratio": ".2f", "images_s": ".0f", "share": ".0%"}
    columns |= {"program_mb": ".0f", "allocator_peak_mb": ".0f", "reference_peak_mb": ".0f", "compile_s": ".0f"}
    print(measure.table([row for row in rows if "right" not in row], columns | {"left_out": ""}), flush=True)
    os._exit(not right)  # a compilation under way cannot be stopped, and a plain exit would wait for it


if __name__ == "__main__":
    main()
