"""Trains many small runs on one accelerator: those that differ in seed and learning rate alone are one program.

    python experiments/vmapped/train.py DIR --output=OUT            # DIR: by prepare.py

A small network leaves an accelerator idle: `basisnet train` would spend the time on launching kernels. Here `jax.vmap`
trains up to some dozens of runs in the same kernels, and the data stay on the device. Model, loss, optimizer and step
are those of `basisnet train`; the order of the data and the augmentation (affine and flip only) are drawn otherwise.

Needs jax, flax, optax and ml_collections. Several processes with the same OUT share the work: each takes the next group
of runs that nobody has; on a GPU give them XLA_PYTHON_CLIENT_PREALLOCATE=false. The device is locked while one of them
trains, and the others compile meanwhile. OUT/GROUP.json has a row for each run of a group; the same command goes on
with the groups that have none.
"""

import argparse
import contextlib
import datetime
import fcntl
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator
from functools import partial
from unittest import mock

import augmentation
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax import lax

from basisnet_jax import coefficients, early_exit, models, preprocess
from basisnet_jax.errors import UserError
from basisnet_jax.ops import conv, windows
from basisnet_jax.ops.depthwise import shifted_sum
from basisnet_jax.training import optimizer
from basisnet_jax.training.step import create_state, make_train_step

AT_ONCE = 500  # images of each run that are evaluated


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--until", type=float, default=float("inf"), help="Unix time after which no group is begun")
    parser.add_argument("--at_once", type=int, help="how many runs are side by side; by default all of equal length")
    flags = parser.parse_args(argv)
    jax.config.update("jax_default_matmul_precision", "highest")  # a GPU would round float32 to TF32
    flags.output.mkdir(parents=True, exist_ok=True)
    try:
        runs = json.loads((flags.folder / "runs.json").read_text())
        for run in runs:
            check(run)
        for name, group in groups(runs).items():
            result = flags.output / f"{name}.json"
            with claimed(flags.output / f"{name}.lock") as ours:
                if ours and not result.exists() and time.time() < flags.until:
                    data = dict(np.load(flags.folder / f"{group[0]['config']['dataset']}.npz"))
                    rows = train(group, data, flags.output / "device.lock", flags.at_once)
                    result.with_suffix(".part").write_text(json.dumps(rows))
                    result.with_suffix(".part").replace(result)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def groups(runs: list[dict]) -> dict[str, list[dict]]:
    """The runs that can be one program, by a name: equal but for seed, learning rate and number of epochs."""
    found = {}
    for run in runs:
        config = json.loads(json.dumps(run["config"]))
        del config["seed"], config["num_epochs"], config["eval_every_epochs"], config["optimizer"]["learning_rate"]
        found.setdefault(json.dumps([run["sweep"], config], sort_keys=True), []).append(run)
    return {hashlib.sha256(json.dumps(group).encode()).hexdigest()[:12]: group for group in found.values()}


@contextlib.contextmanager
def claimed(path: pathlib.Path) -> Iterator[bool]:
    """Whether no other process holds it. A process that dies holds it no more."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = True
        except BlockingIOError:
            ours = False
        yield ours


def train(runs: list[dict], data: dict, lock: pathlib.Path, at_once: int | None = None) -> list[dict]:
    """The rows of the runs. Those of equal length are trained side by side, at most `at_once` of them."""
    begun = time.time()
    of_length = {}
    for run in runs:
        of_length.setdefault(run["total_steps"], []).append(run)
    at_once = at_once or max(map(len, of_length.values()))
    together = [part[i : i + at_once] for part in of_length.values() for i in range(0, len(part), at_once)]
    data = {name: jax.device_put(rows) for name, rows in data.items()}
    start, epoch, look, final = programs(runs, at_once, data)
    ready = time.time()
    rows = []
    for part in together:
        config = ml_collections.ConfigDict(part[0]["config"])
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            taken = time.time()
            filled = [*part, *part[:1] * (at_once - len(part))]  # the program is of so many
            states, rates, keys = start(filled)
            for number in range(round(config.num_epochs)):
                states, losses = epoch(states, rates, keys, number)
            losses = jax.device_get(losses)
            trained = time.time()
        found, weights = {}, (states.ema_params, states.ema_batch_stats)
        for split in ("validation", "test", "train_eval"):
            of_split = (data[f"{config[f'{split}_split']} {name}"] for name in ("image", "label"))
            answers = answers_of(look, final, *weights, *of_split, keys, controls=split == "test")
            found |= {f"{split}_{name}": array for name, array in jax.device_get(answers).items()}
        about = {
            "device": f"1 x {jax.devices()[0].device_kind}",
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "wall_s": (trained - taken) / len(part),
        }
        for i, run in enumerate(part):
            of_run = row(run, {name: array[i] for name, array in found.items()})
            rows.append({**of_run, "training_loss": float(losses[i]), **about})
        top1 = " ".join(f"{100 * columns['validation_top1']:.2f}" for columns in rows[-len(part) :])
        step_ms = 1e3 * (trained - taken) / part[0]["total_steps"]
        print(
            f"{part[0]['name']}: {len(part)} runs, compiled in {ready - begun:.0f} s, trained in {trained - taken:.1f} "
            f"s, {step_ms:.2f} ms a step, evaluated in {time.time() - trained:.1f} s; validation top-1 {top1}",
            flush=True,
        )
    return rows


def programs(runs: list[dict], num: int, data: dict) -> tuple:
    """What trains and evaluates runs of one shape, S = `num` of them at once.

    Returns:
      start(runs): states, the learning rates [S, steps] and the random keys [S, 2] of S of the runs.
      epoch(states, rates, keys, number): states after one epoch, and its mean losses [S].
      look(params, batch_stats, images): the first answers, and the coefficients of a BasisNet, [S, B, ...].
      final(params, batch_stats, images, coefficients): the specialist's answers; None for other models.
    """
    config = ml_collections.ConfigDict(runs[0]["config"])
    steps = runs[0]["steps_per_epoch"]
    seeds = sorted({run["config"]["seed"] for run in runs})
    model_of = {seed: create({**runs[0]["config"], "seed": seed}) for seed in seeds}
    functions_of = {seed: models.functional(model) for seed, model in model_of.items()}
    model, functions = model_of[seeds[0]], functions_of[seeds[0]]
    temperature = optimizer.temperature(config.coefficients, steps)
    most_steps = max(run["total_steps"] for run in runs)
    columns = ("image", "label", "teacher")[: 3 if config.distillation.teacher else 2]
    examples = {name: data[f"{config.train_split} {name}"] for name in columns}

    def transformation(rates):
        return optimizer.create(config.optimizer, lambda step: rates[step], functions)

    def started(params, batch_stats, rates):
        return create_state(params, batch_stats, transformation(rates))

    def start(runs):
        of_runs = [functions_of[run["config"]["seed"]][:2] for run in runs]
        weights = jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_runs)
        rates = jnp.stack([rates_of(run, most_steps) for run in runs])
        keys = jax.vmap(jax.random.split)(jnp.stack([jax.random.key(run["config"]["seed"]) for run in runs]))
        return jax.jit(jax.vmap(started))(*weights, rates), rates, keys

    def one_step(state, batch, rates, keys):
        image_key, step_key = jax.random.split(jax.random.fold_in(keys[1], state.step))
        batch = {**batch, "image": augmentation.augmented(batch["image"], image_key, config.augment)}
        return make_train_step(config, functions, transformation(rates), temperature)(state, batch, step_key)

    @partial(jax.jit, donate_argnums=0)
    def epoch(states, rates, keys, examples, number):
        def order(keys):
            return jax.random.permutation(jax.random.fold_in(keys[0], number), len(examples["label"]))

        orders = jax.vmap(order)(keys)

        def step(states, i):
            chosen = lax.dynamic_slice_in_dim(orders, i * config.batch_size, config.batch_size, axis=1)
            batch = {name: rows[chosen] for name, rows in examples.items()}
            states, metrics = jax.vmap(one_step)(states, batch, rates, keys)
            return states, metrics["loss"]

        states, losses = lax.scan(step, states, jnp.arange(steps))
        return states, losses.mean(axis=0)

    model.eval()
    graph, _, _, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

    def stage(function, axes):
        def run(params, batch_stats, images, *inputs):
            merged = nnx.merge(graph, nnx.State(params), nnx.State(batch_stats), rest, copy=True)
            return function(merged, preprocess.of(config).normalize(images), *inputs)

        return jax.jit(jax.vmap(run, in_axes=axes))

    if config.model == "basisnet":
        look = stage(lambda model, images: model.preview_stage(images), (0, 0, None))
        final = stage(lambda model, images, mixtures: model.specialist_stage(images, mixtures), (0, 0, None, 0))
    else:

        def only(params, batch_stats, images):
            return functions.evaluate(params, batch_stats, preprocess.of(config).normalize(images)).logits, None

        look, final = jax.jit(jax.vmap(only, in_axes=(0, 0, None))), None
    states, rates, keys = start((runs * num)[:num])
    compiled = epoch.lower(states, rates, keys, examples, 0).compile()
    piece = jnp.zeros((AT_ONCE, *examples["image"].shape[1:]), jnp.uint8)
    weights = states.params, states.batch_stats
    _, mixtures = look(*weights, piece)  # compiles
    if final is not None:
        final(*weights, piece, mixtures)
    return start, lambda states, rates, keys, number: compiled(states, rates, keys, examples, number), look, final


def rates_of(run: dict, most_steps: int) -> jax.Array:
    """The learning rate of every step [most_steps]."""
    config = ml_collections.ConfigDict(run["config"]).optimizer
    return jax.vmap(optimizer.schedule(config, run["steps_per_epoch"], run["total_steps"]))(jnp.arange(most_steps))


def check(run: dict) -> None:
    """Refuses what this program would leave out without a word."""
    config = ml_collections.ConfigDict(run["config"])
    fields = config.distillation
    known = (
        "flip",
        "shift",
        "rotation",
        "zoom",
        "layers",
        "magnitude",
        "mixup",
        "cutmix",
    )  # the last two are the train step's
    lacking = [f"config.augment.{name}" for name, amount in config.augment.items() if name not in known and amount]
    lacking += [f"config.{name}" for name in ("init_from", "preview_init_from") if config[name]]
    lacking += ["a teacher without config.distillation.cache"] * bool(fields.teacher and not fields.cache)
    lacking += ["config.eval_crop below 1"] * (config.eval_crop != 1)
    lacking += ["a part of an epoch"] * (run["total_steps"] % run["steps_per_epoch"] != 0)
    if lacking:
        raise UserError(f"run {run['name']} has {', '.join(lacking)}, which vmapped/train.py cannot do")


def create(config: dict) -> nnx.Module:
    """The model, its shared convolutions as products."""
    with mock.patch.object(conv, "conv_general_dilated", as_products):
        return models.create(ml_collections.ConfigDict(config))


def as_products(lhs, rhs, strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, **_):
    """`conv.conv_general_dilated` for what the networks have. `vmap` would make grouped convolutions of XLA's own."""
    window, dilation = rhs.shape[:2], tuple(rhs_dilation or (1, 1))
    pads = tuple(map(tuple, windows.explicit_padding(lhs.shape[1:-1], window, strides, padding, dilation)))
    if feature_group_count > 1:
        if not feature_group_count == lhs.shape[-1] == rhs.shape[-1]:
            raise ValueError(f"groups={feature_group_count} of {lhs.shape[-1]} channels, expected 1 or as many")
        return shifted_sum(lhs, rhs[None, :, :, 0], tuple(strides), pads, dilation)
    patches = jnp.concatenate([*windows.slices(windows.pad(lhs, pads), window, strides, dilation)], axis=-1)
    return jnp.matmul(patches, rhs.reshape(-1, rhs.shape[-1]))


def answers_of(look, final, params, batch_stats, images, labels, keys, controls: bool) -> dict[str, jax.Array]:
    """What S models say of n images; by name, [S, n] each.

    confidence, preview_top1: of the preview, or of a model without one. top1: of the final answer. With `controls`, of
    a BasisNet also shuffled_top1 and mean_top1, with the coefficients of another image and with the mean of all, and
    `coefficients`.
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

    answers["top1"] = top1_with(mixtures)
    if not controls:
        return answers
    return {
        **answers,
        "shuffled_top1": top1_with(jax.vmap(jax.random.permutation)(keys[:, 1], mixtures)),
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
        "train_top1": images["train_eval_top1"].mean(),
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


if __name__ == "__main__":
    sys.exit(main())
