"""What per-example kernels cost: BasisNet against its preview and a static specialist; and layer by layer.

    python benchmarks/synthesis.py [--quick] [--layers] [--json FILE] [BASES ...]

configs/imagenet_basisnet_mv3.py with 4, 8 and 16 bases, or those given, batches of 32 at 224 px, float32: the forward
pass in evaluation and the step of a training run. The reference has the same preview and, in the specialist's place,
the plain network. They take turns; medians. Memory is XLA's own account of the compiled program (`memory_analysis`):
the peak is of arguments, results and temporaries, donated memory once; temporaries are what a call needs above what
rests there.

`--layers` times instead, with 16 bases, every different convolution that has bases, mixing and convolving with
one kernel per example, against the same convolution with one kernel for all; forward, and with the gradient. MobileNet
has no general convolution among them: two 3x3 ones stand for that kind. The rows named "all ..." sum a kind over the
network. `roofline_ms` is what this machine would need at best, given the multiply-adds, and that each input, result and
basis kernel moves once: by the rate of a large matrix product and of a triad a = b + s c, measured in the same run.

`--quick` (under a minute) takes 4 bases and small images, or a few layers.
"""

import collections
import math
import time
from unittest import mock

import jax
import jax.numpy as jnp
import measure
import numpy as np
from basisnet_jax.configs import imagenet_basisnet_mv3
from flax import nnx
from preview_and_static import PreviewAndStatic

from basisnet_jax import basis, cli, models, preprocess
from basisnet_jax.ops import conv
from basisnet_jax.training.step import build_step


def compiled(config, model) -> dict[str, tuple]:
    """{"forward": (function without arguments, `memory`), "step": ...}."""
    functions = models.functional(model)
    random = np.random.default_rng(0)
    size, labels = config.image_size, jnp.asarray(random.integers(0, config.num_classes, config.batch_size))
    images = jnp.asarray(random.integers(0, 256, (config.batch_size, size, size, 3)).astype(np.uint8))
    built = build_step(config, functions, steps_per_epoch=1000)
    state, key = built.create_state(functions.params, functions.batch_stats), jax.random.key(config.seed)
    batch = {"image": images, "label": labels}
    forward = jax.jit(lambda p, s, images: functions.evaluate(p, s, preprocess.of(config).normalize(images)))
    forward = forward.lower(functions.params, functions.batch_stats, images).compile()
    step = built.run.lower(state, batch, key).compile()

    def run_step():
        nonlocal state
        state, metrics = step(state, batch, key)
        jax.block_until_ready(metrics)

    def run_forward():
        jax.block_until_ready(forward(functions.params, functions.batch_stats, images))

    return {"forward": (run_forward, memory(forward)), "step": (run_step, memory(step))}


def memory(program) -> dict[str, float]:
    sizes = program.memory_analysis()
    results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    peak = sizes.argument_size_in_bytes + results + sizes.temp_size_in_bytes
    return {"peak": peak / 1e6, "temporaries": sizes.temp_size_in_bytes / 1e6}


def whole_networks(counts: list[int], quick: bool) -> list[dict]:
    rows = []
    for bases in counts or ((4,) if quick else (4, 8, 16)):
        config = imagenet_basisnet_mv3.get_config(f"bases={bases}" + (",width=0.35" if quick else ""))
        config.dtype, config.batch_size = "float32", 32
        if quick:
            config.batch_size, config.image_size, config.preview.image_size = 8, 96, 64
            config.network.num_stages = config.preview.num_stages = 2
        ours, reference = compiled(config, models.create(config)), compiled(config, PreviewAndStatic(config))
        for kind, turns in (("forward", 7), ("step", 5)):
            (run, needs), (reference_run, reference_needs) = ours[kind], reference[kind]
            row = measure.compare(f"{bases} bases, {kind}", run, reference_run, turns)
            for name, megabytes in needs.items():
                row |= {f"ours_{name}_mb": megabytes, f"reference_{name}_mb": reference_needs[name]}
                row[f"{name}_ratio"] = megabytes / reference_needs[name]
            rows.append(row)
    return rows


class Layer(tuple):
    """(x's shape, the kernels' shape, ((name, argument of the convolution), ...)), of one kernel per example."""

    @property
    def kind(self) -> str:
        x, kernels, arguments = self
        groups = dict(arguments)["groups"]
        return "pointwise" if set(kernels[1:-2]) == {1} else "depthwise" if groups == x[-1] else "general"

    def __str__(self) -> str:
        x, kernels, arguments = self
        window, strides = "x".join(map(str, kernels[1:-2])), dict(arguments)["strides"]
        return f"{self.kind} {window}, [{', '.join(map(str, x))}] to {kernels[-1]}, stride {strides[0]}"


def layers_of(config) -> collections.Counter:
    """Every different convolution of the specialist that has bases, and how often it occurs."""
    found = collections.Counter()

    def record(x, kernels, **arguments):
        found[Layer((x.shape, kernels.shape, tuple(arguments.items())))] += 1
        return convolve(x, kernels, **arguments)

    convolve = conv.conv_per_example
    model = models.create_abstract(config)
    model.eval()
    shape = (config.batch_size, config.image_size, config.image_size, config.channels)
    with mock.patch.object(conv, "conv_per_example", record):
        nnx.eval_shape(lambda model, images: model(images), model, jax.ShapeDtypeStruct(shape, jnp.float32))
    return found


def of_layer(layer: Layer, bases: int, gradient: bool, rates: tuple[float, float], turns: int) -> dict:
    x_shape, (batch, *kernel_shape), arguments = layer
    arguments = dict(arguments)
    random = np.random.default_rng(0)

    def array(*shape):
        return jnp.asarray(random.normal(size=shape).astype(np.float32))

    x, kernels_N, coefficients = array(*x_shape), array(bases, *kernel_shape), array(batch, bases)
    dimension_numbers = conv._channels_last(len(kernel_shape) - 2)

    def per_example(x, kernels_N, coefficients):
        return conv.conv_per_example(x, basis.mix(coefficients, kernels_N), **arguments)

    def shared(x, kernel):
        strides, padding, dilation = arguments["strides"], arguments["padding"], arguments["dilation"]
        return conv.conv_general_dilated(
            x, kernel, strides, padding, None, dilation, dimension_numbers, arguments["groups"]
        )

    def runner(function, *inputs):
        if gradient:
            cotangent = array(*jax.eval_shape(function, *inputs).shape)
            function = jax.jit(lambda *inputs, f=function: jax.vjp(f, *inputs)[1](cotangent))
        else:
            function = jax.jit(function)
        return lambda: jax.block_until_ready(function(*inputs))

    y = jax.eval_shape(per_example, x, kernels_N, coefficients)
    row = measure.compare(
        f"{layer}, {'with gradient' if gradient else 'forward'}",
        runner(per_example, x, kernels_N, coefficients),
        runner(shared, x, kernels_N[0]),
        turns,
    )
    # Forward, and each gradient, are as many multiply-adds again: of the convolution and of the mixing.
    weights = math.prod(kernel_shape)
    products = (y.size * weights // kernel_shape[-1] + batch * bases * weights) * (3 if gradient else 1)
    moved = 4 * (x.size + y.size + kernels_N.size) * (2 if gradient else 1)
    flops, bandwidth = rates
    return row | {"kind": layer.kind, "roofline_ms": 1000 * max(2 * products / flops, moved / bandwidth)}


def roofline() -> tuple[float, float]:
    """FLOP/s of a product of two 2048x2048 matrices, bytes/s of a triad over 3 x 256 MB: float32, the best of five."""
    a = jnp.ones((2048, 2048))
    b, c = jnp.ones(2**26), jnp.ones(2**26)
    work = [(jax.jit(jnp.matmul), (a, a), 2 * 2048**3), (jax.jit(lambda b, c: b + 3 * c), (b, c), 3 * 4 * 2**26)]
    rates = []
    for function, inputs, amount in work:
        seconds = []
        for _ in range(6):
            begin = time.perf_counter()
            jax.block_until_ready(function(*inputs))
            seconds.append(time.perf_counter() - begin)
        rates.append(amount / min(seconds[1:]))
    return tuple(rates)


def by_layer(quick: bool) -> list[dict]:
    config = imagenet_basisnet_mv3.get_config()
    config.dtype, config.batch_size = "float32", 32
    found = layers_of(config)
    general = {"strides": (1, 1), "padding": "SAME", "dilation": (1, 1), "groups": 1}
    for side, channels in ((56, 24), (14, 96)):
        shapes = (32, side, side, channels), (32, 3, 3, channels, channels)
        found[Layer((*shapes, tuple(general.items())))] += 1
    if quick:
        by_kind = {layer.kind: layer for layer in found}
        found = {layer: 1 for layer in by_kind.values()}
    rates = roofline()
    print(f"this machine: {rates[0] / 1e9:.0f} GFLOP/s, {rates[1] / 1e9:.1f} GB/s")
    rows = []
    for gradient in (False, True):
        single = [of_layer(layer, 16, gradient, rates, 3 if quick else 7) for layer in found]
        counts = dict(zip((row["name"] for row in single), found.values(), strict=True))
        for kind in dict.fromkeys(row["kind"] for row in single):
            of_kind = [row for row in single if row["kind"] == kind]
            fields = ("ours_ms", "reference_ms", "roofline_ms")
            sums = {field: sum(counts[row["name"]] * row[field] for row in of_kind) for field in fields}
            name = f"all {kind}, {'with gradient' if gradient else 'forward'}"
            single.append({"name": name, "kind": kind, **sums, "ratio": sums["ours_ms"] / sums["reference_ms"]})
        rows += single
    for row in rows:
        row["of_roofline"] = row["roofline_ms"] / row["ours_ms"]
    return rows


def main() -> None:
    cli.keep_freed_memory()  # as the `basisnet` command does, for both sides
    parser = measure.flags(__doc__)
    parser.add_argument("bases", nargs="*", type=int, metavar="BASES", help="numbers of bases; 4, 8 and 16")
    parser.add_argument("--layers", action="store_true", help="time single layers instead of networks")
    flags = parser.parse_args()
    columns = {"ours_ms": ".2f", "reference_ms": ".2f", "ratio": ".2f", "cpu_ratio": ".2f"}
    if flags.layers:
        rows, columns = by_layer(flags.quick), columns | {"roofline_ms": ".2f", "of_roofline": ".0%"}
    else:
        rows = whole_networks(flags.bases, flags.quick)
        columns |= {f"{who}_{name}_mb": ".0f" for name in ("peak", "temporaries") for who in ("ours", "reference")}
        columns |= {"peak_ratio": ".2f", "temporaries_ratio": ".2f"}
    print(measure.table(rows, columns))
    measure.write(rows, flags.json)


if __name__ == "__main__":
    main()
