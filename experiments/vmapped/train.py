"""Trains many small runs on one accelerator: those that differ in seed and learning rate alone are one program.

    python experiments/vmapped/train.py DIR --output=OUT            # DIR: by prepare.py

A small network leaves an accelerator idle: `basisnet train` would spend the time on launching kernels. Here `jax.vmap`
trains up to some dozens of runs in the same kernels, and the data stay on the device. Model, loss, optimizer and step
are those of `basisnet train`; the order of the data and the augmentation (shift and flip only) are drawn otherwise.

Needs jax, flax, optax and ml_collections. Several processes with the same OUT share the work: each takes the next group
of runs that nobody has. OUT/GROUP.json has a row for each run of a group, OUT/GROUP.npz, for the same runs, what
happens to every image of the validation and test splits.
"""

import argparse
import datetime
import fcntl
import json
import pathlib
import re
import time
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax import lax

from basisnet_jax import coefficients, conv, early_exit, models, optimizer, preprocess, windows
from basisnet_jax.depthwise import shifted_sum
from basisnet_jax.train_step import create_state, make_train_step

AT_ONCE = 500  # images of each run that are evaluated


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--until", type=float, default=float("inf"), help="Unix time after which no group is begun")
    parser.add_argument("--at_once", type=int, help="how many runs are side by side: all of a length, or 1 on a CPU")
    flags = parser.parse_args(argv)
    jax.config.update("jax_default_matmul_precision", "highest")  # a GPU would round float32 to TF32
    flags.output.mkdir(parents=True, exist_ok=True)
    for name, group in groups(json.loads((flags.folder / "runs.json").read_text())).items():
        if time.time() < flags.until and claimed(flags.output / f"{name}.claimed"):
            data = dict(np.load(flags.folder / f"{group[0]['config']['dataset']}.npz"))
            rows, images = train(group, data, flags.output / "device.lock", flags.at_once)
            np.savez_compressed(flags.output / f"{name}.npz", **images)
            (flags.output / f"{name}.json").write_text(json.dumps(rows))


def groups(runs: list[dict]) -> dict[str, list[dict]]:
    """The runs that can be one program, by a name: equal but for seed, learning rate and number of epochs."""
    found = {}
    for run in runs:
        config = json.loads(json.dumps(run["config"]))
        del config["seed"], config["num_epochs"], config["eval_every_epochs"], config["optimizer"]["learning_rate"]
        found.setdefault(json.dumps([run["sweep"], config], sort_keys=True), []).append(run)
    return {f"{i:03d}": group for i, group in enumerate(found.values())}


def claimed(path: pathlib.Path) -> bool:
    """Whether nobody had claimed it before."""
    try:
        path.open("x").close()
    except FileExistsError:
        return False
    return True


def train(runs: list[dict], data: dict, lock: pathlib.Path, at_once: int | None) -> tuple[list[dict], dict]:
    """The rows of the runs, and arrays [runs, images] by split and name.

    Those of equal length are trained side by side. The device is locked while they are: other processes compile then.
    """
    begun = time.time()
    lengths = dict.fromkeys(run["total_steps"] for run in runs)
    together = [[run for run in runs if run["total_steps"] == length] for length in lengths]
    together = [
        part[i : i + (at_once or len(part))] for part in together for i in range(0, len(part), at_once or len(part))
    ]
    data = {name: jax.device_put(rows) for name, rows in data.items()}
    start, epoch, look, final = programs(runs, len(together[0]), data)
    ready = time.time()
    rows, images = [], []
    for part in together:
        config, steps = ml_collections.ConfigDict(part[0]["config"]), part[0]["steps_per_epoch"]
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            taken = time.time()
            states, rates, keys = start(part)
            for number in range(part[0]["total_steps"] // steps):
                states, losses = epoch(states, rates, keys, number)
            losses = jax.device_get(losses)
            trained = time.time()
            found = {}
            num_seen = int(re.fullmatch(r"train\[:(\d+)\]", config.train_eval_split)[1])
            for split in ("validation", "test", "train"):
                given, count = config[f"{split}_split"], num_seen if split == "train" else None
                of_split = (data[f"{given} {name}"][:count] for name in ("image", "label"))
                answers = answers_of(look, final, states.ema_params, states.ema_batch_stats, *of_split, keys)
                found |= {f"{split}_{name}": array for name, array in jax.device_get(answers).items()}
        about = {
            "device": f"1 x {jax.devices()[0].device_kind}",
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "wall_s": (trained - taken) / len(part),
        }
        rows += [
            {**row(run, {name: array[i] for name, array in found.items()}), "loss": float(losses[i]), **about}
            for i, run in enumerate(part)
        ]
        images.append(found)
        top1 = " ".join(f"{100 * columns['validation_top1']:.2f}" for columns in rows[-len(part) :])
        step_ms = 1e3 * (trained - taken) / part[0]["total_steps"]
        print(
            f"{part[0]['name']}: {len(part)} runs, compiled in {ready - begun:.0f} s, trained in {trained - taken:.1f} "
            f"s, {step_ms:.2f} ms a step, evaluated in {time.time() - trained:.1f} s; validation top-1 {top1}",
            flush=True,
        )
    kept = [name for name in images[0] if not name.startswith("train_") and not name.endswith("coefficients")]
    return rows, {name: np.concatenate([packed(found[name]) for found in images]) for name in kept}


def programs(runs: list[dict], num: int, data: dict) -> tuple:
    """What trains and evaluates runs of one shape, S = `num` of them at once.

    Returns:
      start(runs): states, the learning rates [S, steps] and the random keys [S] of S of the runs.
      epoch(states, rates, keys, number): states after one epoch, and its mean losses [S].
      look(params, batch_stats, images): the first answers, and the coefficients of a BasisNet, [S, B, ...].
      final(params, batch_stats, images, coefficients): the specialist's answers; None for other models.
    """
    config = ml_collections.ConfigDict(runs[0]["config"])
    check(config, runs[0])
    steps = runs[0]["steps_per_epoch"]
    seeds = sorted({run["config"]["seed"] for run in runs})
    model_of = {seed: create({**runs[0]["config"], "seed": seed}) for seed in seeds}
    functions_of = {seed: models.functional(model) for seed, model in model_of.items()}
    model, functions = model_of[seeds[0]], functions_of[seeds[0]]
    temperature = optimizer.temperature(config.coefficients, steps)
    most_steps = max(run["total_steps"] for run in runs)
    images, labels = (data[f"{config.train_split} {name}"] for name in ("image", "label"))

    def transformation(rates):
        return optimizer.create(config.optimizer, lambda step: rates[step], functions)

    def started(params, batch_stats, rates):
        return create_state(params, batch_stats, transformation(rates))

    def start(runs):
        of_runs = [functions_of[run["config"]["seed"]][:2] for run in runs]
        weights = jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_runs)
        rates = jnp.stack([rates_of(run, most_steps) for run in runs])
        keys = jnp.stack([jax.random.key(run["config"]["seed"]) for run in runs])
        return jax.jit(jax.vmap(started))(*weights, rates), rates, keys

    def one_step(state, batch, rates, key):
        image_key, step_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = {**batch, "image": augmented(batch["image"], image_key, config.augment)}
        return make_train_step(config, functions, transformation(rates), temperature)(state, batch, step_key)

    @partial(jax.jit, donate_argnums=0)
    def epoch(states, rates, keys, images, labels, number):
        def order(key):
            return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 1), number), len(images))

        orders = jax.vmap(order)(keys)

        def step(states, i):
            chosen = lax.dynamic_slice_in_dim(orders, i * config.batch_size, config.batch_size, axis=1)
            batch = {"image": images[chosen], "label": labels[chosen]}
            states, metrics = jax.vmap(one_step)(states, batch, rates, keys)
            return states, metrics["loss"]

        states, losses = lax.scan(step, states, jnp.arange(steps))
        return states, losses.mean(axis=0)

    model.eval()
    graph, _, _, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

    def stage(function, axes):
        def run(params, batch_stats, images, *inputs):
            merged = nnx.merge(graph, nnx.State(params), nnx.State(batch_stats), rest, copy=True)
            return function(merged, preprocess.normalize(images, config), *inputs)

        return jax.jit(jax.vmap(run, in_axes=axes))

    if config.model == "basisnet":
        look = stage(lambda model, images: model.preview_stage(images), (0, 0, None))
        final = stage(lambda model, images, mixtures: model.specialist_stage(images, mixtures), (0, 0, None, 0))
    else:

        def only(params, batch_stats, images):
            return functions.evaluate(params, batch_stats, preprocess.normalize(images, config)).logits, None

        look, final = jax.jit(jax.vmap(only, in_axes=(0, 0, None))), None
    states, rates, keys = start(runs[:num])
    compiled = epoch.lower(states, rates, keys, images, labels, 0).compile()
    piece = jnp.zeros((AT_ONCE, *images.shape[1:]), images.dtype)
    weights = states.params, states.batch_stats
    _, mixtures = look(*weights, piece)  # compiles
    if final is not None:
        final(*weights, piece, mixtures)
    return start, lambda states, rates, keys, number: compiled(states, rates, keys, images, labels, number), look, final


def rates_of(run: dict, most_steps: int) -> jax.Array:
    """The learning rate of every step [most_steps]."""
    config = ml_collections.ConfigDict(run["config"]).optimizer
    return jax.vmap(optimizer.schedule(config, run["steps_per_epoch"], run["total_steps"]))(jnp.arange(most_steps))


def check(config, run: dict) -> None:
    """Refuses what this program would leave out without a word."""
    amounts = {"flip": False, "shift": 0.0, "rotation": 0.0, "zoom": 0.0, "crop": 0.0, "policy": "", "erasing": 0.0}
    others = [name for name, none in amounts.items() if name not in ("flip", "shift") and config.augment[name] != none]
    others += [name for name in ("init_from", "preview_init_from") if config[name]]
    if others or config.distillation.teacher or run["total_steps"] % run["steps_per_epoch"]:
        raise ValueError(f"{run['name']}: no {', '.join(others) or 'teacher and no part of an epoch'} here")


def create(config: dict) -> nnx.Module:
    """The model, its shared convolutions as products."""
    with mock.patch.object(conv, "conv_general_dilated", as_products):
        return models.create(ml_collections.ConfigDict(config))


def as_products(lhs, rhs, strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, **_):
    """`conv.conv_general_dilated` for what the networks have. `vmap` would make grouped convolutions of XLA's own."""
    window, dilation = rhs.shape[:2], tuple(rhs_dilation or (1, 1))
    pads = tuple(map(tuple, windows.explicit_padding(lhs.shape[1:-1], window, strides, padding, dilation)))
    if feature_group_count > 1:
        return shifted_sum(lhs, rhs[None, :, :, 0], tuple(strides), pads, dilation)
    patches = jnp.concatenate([*windows.slices(windows.pad(lhs, pads), window, strides, dilation)], axis=-1)
    return jnp.matmul(patches, rhs.reshape(-1, rhs.shape[-1]))


def augmented(images: jax.Array, key: jax.Array, amounts) -> jax.Array:
    """uint8 [B, H, W, C] shifted, bilinearly, and flipped as `augment.affine` and `random_flip` do; float32."""
    images = images.astype(jnp.float32)
    shift_key, flip_key = jax.random.split(key)
    if amounts.shift:
        shifts = jax.random.uniform(shift_key, (2, len(images)), minval=-amounts.shift, maxval=amounts.shift)
        rows, columns = (between(shift, size) for shift, size in zip(shifts, images.shape[1:3], strict=True))
        images = jnp.einsum("bij,bjkc->bikc", rows, images)
        images = jnp.einsum("bkl,bilc->bikc", columns, images)
    if amounts.flip:
        flipped = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
        images = jnp.where(flipped, images[:, :, ::-1], images)
    return images


def between(shift: jax.Array, size: int) -> jax.Array:
    """The weights [B, size, size] of the old pixels in the new ones; what comes from outside is 0."""
    pixels = jnp.arange(size)
    return jax.nn.relu(1 - jnp.abs(pixels[None, :, None] + shift[:, None, None] * size - pixels))


def answers_of(look, final, params, batch_stats, images, labels, keys) -> dict[str, jax.Array]:
    """What S models say of n images; by name, [S, n] each.

    confidence, preview_top1: of the preview, or of a model without one. top1: of the final answer. Of a BasisNet also
    shuffled_top1 and mean_top1, with the coefficients of another image and with the mean of all, and `coefficients`.
    """
    total = len(images)
    pieces = [images[jnp.arange(i, i + AT_ONCE) % total] for i in range(0, total, AT_ONCE)]

    def joined(parts):
        return jnp.concatenate(parts, axis=1)[:, :total]

    def top1(logits):
        return jnp.argmax(logits, -1) == labels

    first = [look(params, batch_stats, piece) for piece in pieces]
    logits = joined([logits for logits, _ in first])
    answers = {"confidence": early_exit.confidence(logits.reshape(-1, logits.shape[-1])).reshape(logits.shape[:2])}
    answers |= {"preview_top1": top1(logits), "top1": top1(logits)}
    if final is None:
        return answers
    mixtures = joined([mixtures for _, mixtures in first])

    def top1_with(mixtures):
        padded = mixtures[:, jnp.arange(len(pieces) * AT_ONCE) % total]
        given = jnp.split(padded, len(pieces), axis=1)
        return top1(joined([final(params, batch_stats, *pair) for pair in zip(pieces, given, strict=True)]))

    return {
        **answers,
        "top1": top1_with(mixtures),
        "shuffled_top1": top1_with(jax.vmap(jax.random.permutation)(keys, mixtures)),
        "mean_top1": top1_with(jnp.broadcast_to(mixtures.mean(axis=1, keepdims=True), mixtures.shape)),
        "coefficients": mixtures,
    }


def row(run: dict, images: dict[str, np.ndarray]) -> dict:
    """A run as `sweep.csv` has it; thresholds of early termination from the validation split."""
    config = run["config"]
    dynamic = "dynamic" if config["routing"]["hidden"] else "condconv"
    found = {
        "sweep": run["sweep"],
        "run": run["name"],
        "model": dynamic if config["model"] == "routed" else config["model"],
        "width": config["network"]["width"],
        "num_bases": 1 if config["model"] == "static" else config["basis"]["num_bases"],
        "seed": config["seed"],
        "num_epochs": config["num_epochs"],
        "madds": run["madds"],
        "train_top1": images["train_top1"].mean(),
        "top1": images["test_top1"].mean(),
        "preview_top1": images["test_preview_top1"].mean() if run["preview_madds"] else "",
        "preview_madds": run["preview_madds"] or "",
        "validation_top1": images["validation_top1"].mean(),
        "optimizer.learning_rate": config["optimizer"]["learning_rate"],
        **run["varied"],
        "commit": run["commit"],
    }
    if run["preview_madds"]:
        costs = run["preview_madds"], run["madds"]
        columns = ("confidence", "preview_top1", "top1")
        held_out, test = (
            early_exit.curve(*(images[f"{split}_{name}"].astype(np.float64) for name in columns), *costs)
            for split in ("validation", "test")
        )
        point = early_exit.at(test, early_exit.choose(held_out, config["max_drop"]))
        found |= {f"early_termination_{name}": value for name, value in point._asdict().items()}
        found |= {name: images[f"test_{name}"].mean() for name in ("shuffled_top1", "mean_top1")}
        found |= coefficients.spread_of(images["test_coefficients"])
    return {name: float(value) if isinstance(value, np.floating) else value for name, value in found.items()}


def packed(array: np.ndarray) -> np.ndarray:
    return np.packbits(array, axis=-1) if array.dtype == bool else array.astype(np.float16)


if __name__ == "__main__":
    main()
