"""The same networks in this code and in PyTorch (geffnet): forward, training step and peak memory on the CPU.

    python benchmarks/against_pytorch.py [--quick] [--json FILE] [NETWORK ...]

Needs the extra `torch`. Batches of 16 at 224 px, float32. Both have the same weights, and the script first checks that
they give the same logits. A training step is cross-entropy, its gradient with batch norm in training mode, and SGD with
momentum; no dropout, no drop connect. Both use every core that the process may run on (`taskset -c 0` for one), and
PyTorch the memory format (NCHW or channels last) in which it is the quicker, tried anew for each row. They take turns;
medians. Peak memory is what a call needs above weights and program, by the system's count in a process of its own.

`--quick` (under a minute) is MobileNetV2 alone, batches of 4 at 96 px.
"""

import functools
import os
import time

import geffnet
import jax
import measure
import numpy as np
import optax
import torch
from basisnet_jax.configs import imagenet_condconv_efficientnet_b0, imagenet_static

from basisnet_jax import cli, models
from basisnet_jax.training import import_weights

PEERS = {  # network: (its name in geffnet, the framework it is from, its experts)
    "mobilenet_v2": ("mobilenetv2_100", "pytorch", 0),
    "mobilenet_v3_large": ("mobilenetv3_large_100", "pytorch", 0),
    "efficientnet_b0": ("efficientnet_b0", "pytorch", 0),
    "condconv_efficientnet_b0_4": ("tf_efficientnet_cc_b0_4e", "tensorflow", 4),
    "condconv_efficientnet_b0_8": ("tf_efficientnet_cc_b0_8e", "tensorflow", 8),
}
FORMATS = {"NCHW": torch.contiguous_format, "channels last": torch.channels_last}
RATE, MOMENTUM = 1e-3, 0.9


def batch(size: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(size=(size, side, side, 3)).astype(np.float32), random.integers(0, 1000, size)


def peer(name: str) -> torch.nn.Module:
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as many as XLA takes
    torch.manual_seed(0)
    return geffnet.create_model(PEERS[name][0], pretrained=False, drop_rate=0.0, drop_connect_rate=0.0)


def of_pytorch(name: str, training: bool, memory_format: str, size: int, side: int):
    """A function that runs the peer once on the same batch and returns its logits, or in training its loss."""
    images, labels = batch(size, side)
    images = torch.from_numpy(images.transpose(0, 3, 1, 2)).contiguous(memory_format=FORMATS[memory_format])
    labels, model = torch.from_numpy(labels), peer(name).to(memory_format=FORMATS[memory_format]).train(training)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)

    def forward():
        with torch.inference_mode():
            return model(images).numpy()

    def step():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step if training else forward


def of_ours(name: str, training: bool, size: int, side: int):
    _, origin, experts = PEERS[name]
    if experts:
        config = imagenet_condconv_efficientnet_b0.get_config(f"bases={experts}")
    else:
        config = imagenet_static.get_config(f"network={name}")
    config.dtype, config.network.dropout = "float32", 0.0
    if config.network.name.startswith("efficientnet"):
        config.network.drop_connect = 0.0
    config.network.update(import_weights.ORIGINS[origin])
    model = models.create(config)
    state_dict = {key: tensor.numpy() for key, tensor in peer(name).state_dict().items()}
    params, batch_stats = import_weights.convert(state_dict, model)
    functions = models.functional(model)
    images, labels = batch(size, side)
    key, tx = jax.random.key(0), optax.sgd(RATE, MOMENTUM)

    @jax.jit
    def evaluate(params, batch_stats, images):
        return functions.evaluate(params, batch_stats, images).logits

    @functools.partial(jax.jit, donate_argnums=0)
    def train(state, images, labels):
        def loss_fn(params):
            outputs, new_stats = functions.train(params, batch_stats, images, key)
            return optax.softmax_cross_entropy_with_integer_labels(outputs.logits, labels).mean(), new_stats

        params, batch_stats, opt_state = state
        (loss, batch_stats), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), batch_stats, opt_state), loss

    state = jax.tree.map(jax.numpy.asarray, (params, batch_stats, tx.init(params)))

    def step():
        nonlocal state
        state, loss = train(state, images, labels)
        return float(loss)

    return step if training else lambda: np.asarray(evaluate(*state[:2], images))


def quickest_format(name: str, training: bool, *shape) -> str:
    """In which of `FORMATS` PyTorch takes less time, by the better of two runs after the first."""
    times = {}
    for memory_format in ("NCHW",) if PEERS[name][2] else FORMATS:  # geffnet's CondConv cannot do the other
        run, seconds = of_pytorch(name, training, memory_format, *shape), []
        for _ in range(3):
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
        times[memory_format] = min(seconds[1:])
    return min(times, key=times.get)


def row(name: str, training: bool, turns: int, *shape) -> dict:
    memory_format = quickest_format(name, training, *shape)
    ours, theirs = of_ours(name, training, *shape), of_pytorch(name, training, memory_format, *shape)
    if not training:
        expected = theirs()
        np.testing.assert_allclose(ours(), expected, atol=1e-3 * np.abs(expected).max())
    result = measure.compare(f"{name} {'step' if training else 'forward'}", ours, theirs, turns)
    result["pytorch_format"] = memory_format
    peaks = {
        "ours_peak_mb": measure.peak_memory(of_ours, name, training, *shape) / 1e6,
        "reference_peak_mb": measure.peak_memory(of_pytorch, name, training, memory_format, *shape) / 1e6,
    }
    return result | peaks | {"peak_ratio": peaks["ours_peak_mb"] / peaks["reference_peak_mb"]}


def main() -> None:
    cli.keep_freed_memory()  # as the `basisnet` command does, for both sides
    parser = measure.flags(__doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(PEERS)}; all of them")
    flags = parser.parse_args()
    names, turns, shape = flags.networks or [*PEERS], 7, (16, 224)
    if flags.quick:
        names, turns, shape = flags.networks or ["mobilenet_v2"], 2, (4, 96)
    rows = [row(name, training, turns, *shape) for name in names for training in (False, True)]
    columns = {"ours_ms": ".0f", "reference_ms": ".0f", "ratio": ".2f", "cpu_ratio": ".2f"}
    columns |= {"ours_peak_mb": ".0f", "reference_peak_mb": ".0f", "peak_ratio": ".2f", "pytorch_format": ""}
    print(f"batch {shape[0]} at {shape[1]} px, {torch.get_num_threads()} threads; the reference is PyTorch")
    print(measure.table(rows, columns))
    measure.write(rows, flags.json)


if __name__ == "__main__":
    main()
