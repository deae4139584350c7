"""Exact, masked metrics of both heads, and what early termination makes of them."""

import datetime
import os
import subprocess
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from basisnet_jax import coefficients, early_exit, madds, models, plots, preprocess
from basisnet_jax.data.pipeline import Dataset
from basisnet_jax.distributed import partition
from basisnet_jax.early_exit import Rule
from basisnet_jax.errors import UserError
from basisnet_jax.inference import by_class
from basisnet_jax.models import Functional
from basisnet_jax.training import losses
from basisnet_jax.workdir import checkpoint, data_record, files, runs

METRICS = ("top1", "top5", "loss")  # of a head, an array each


def evaluate(workdir: str, which: str | None = None, threshold: float | None = None) -> dict:
    """Evaluates a checkpoint on the test split and writes what `write` does.

    Args:
      workdir: of the run; also where the results go.
      which: a step, "best" (on the validation split), or None for the newest.
      threshold: at which the preview's confidence, its largest probability, ends inference. None takes the rule that
        `basisnet calibrate` found for this checkpoint or, where it never ran, chooses one on the validation split.
    """
    config = runs.load_config(workdir)
    functions = models.functional(models.create(config))
    mesh = partition.create_mesh(config.eval_batch_size, config.fsdp)
    state = {
        "params": functions.params,
        "batch_stats": functions.batch_stats,
        "ema_params": functions.params,
        "ema_batch_stats": functions.batch_stats,
    }
    state = jax.jit(lambda state: state, out_shardings=partition.of_state(state, mesh))(state)
    checkpoints = checkpoint.manager(workdir)
    step = checkpoint.pick(checkpoints, which)
    rule = runs.load_rule(workdir, step) if threshold is None else Rule(threshold)
    state = checkpoint.restore(checkpoints, step, state)
    data = data_record.opened(workdir)
    return write_report(config, data, workdir, functions, state, step, mesh, rule)


def write_report(
    config,
    data: Dataset,
    workdir: str,
    functions: Functional,
    state,
    step: int,
    mesh: Mesh,
    rule: Rule | None = None,
) -> dict:
    """Test metrics with the averaged (EMA) and the raw weights, written to `workdir` and returned.

    Without a `rule` of when images stop, its threshold is chosen on the validation split for `config.max_drop`.
    With a `config.train_eval_split`, "train" holds the metrics of the averaged weights on it: without augmentation and
    dropout, as on the test split, so that the difference is what the model has not generalised.
    """
    per_example = make_per_example(functions, preprocess.of(config).normalize, mesh, rule)

    def rows(split, weights="ema_"):
        return per_example(state[f"{weights}params"], state[f"{weights}batch_stats"], data.eval_batches(split))

    averaged, raw = rows(config.test_split), rows(config.test_split, weights="")
    items = madds.count(models.create_abstract(config), preprocess.of(config).shape)
    names = runs.load_classes(workdir, config.num_classes)
    report = {
        **summarize(averaged),
        "madds": madds.total(items),
        "step": step,
        "split": config.test_split,
        "weights": "ema",
        "raw": summarize(raw),
    }
    if config.train_eval_split:
        report["train"] = summarize(rows(config.train_eval_split))
    if "confidence" in averaged:
        costs = madds.preview_only(items), madds.total(items)
        if rule is None:
            held_out = rows(config.validation_split)
            rule = Rule(early_exit.choose(curve(held_out, costs), config.max_drop), chosen_on=config.validation_split)
        report |= {"preview_madds": costs[0], "early_termination": early_termination(averaged, costs, rule)}
    report |= by_class.describe(averaged["label"], by_class.answers(averaged, rule), names)
    report["provenance"] = provenance(config)
    if jax.process_index() == 0:
        try:
            write(report, averaged, rule, names, workdir)
        except OSError as error:
            reason = f"the evaluation cannot be written to {workdir}: {error.strerror}"
            raise UserError(reason, result=table(report)) from error
    return report


def write(report: dict, per_example: dict[str, np.ndarray], rule: Rule | None, names: list[str], workdir: str) -> None:
    """Writes `evaluation.json`, `confusion.csv` and their pictures, `early_termination.png` and `confusion.png`."""
    labels, answers = per_example["label"], by_class.answers(per_example, rule)
    files.write_json(os.path.join(workdir, "evaluation.json"), report)
    by_class.write_csv(labels, answers, names, os.path.join(workdir, "confusion.csv"))
    plots.confusion(labels, answers, names, report["split"], os.path.join(workdir, "confusion.png"))
    if "early_termination" in report:
        plots.early_termination(report, os.path.join(workdir, "early_termination.png"))


def early_termination(per_example: dict[str, np.ndarray], costs: tuple[int, int], rule: Rule) -> dict:
    """What the rule makes of a split: its point on the curve, and the curve; `costs` of a stop and of both stages."""
    points = curve(per_example, costs)
    answers = by_class.answers(per_example, rule)["early_termination"]
    return {
        **early_exit.at(points, rule.threshold)._asdict(),
        "balanced_accuracy": by_class.balanced_accuracy(per_example["label"], answers),
        **rule._asdict(),
        "curve": [point._asdict() for point in early_exit.thin(points)],
    }


def make_per_example(
    functions: Functional, normalize: Callable, mesh: Mesh, rule: Rule | None = None, *, logits: bool = False
) -> Callable[[dict, dict, Iterable[dict]], dict[str, np.ndarray]]:
    """`per_example(params, batch_stats, batches)`: arrays [examples, ...], every example of the batches exactly once.

    Of a batch {"image", "label", "mask"} the examples whose mask is False are left out; without a mask none is.
    `normalize` makes of its images what the model takes. The preview's confidence is that of the rule, without one its
    largest probability. With `logits`, its logits and the `probability` of the final answers are among the arrays.
    """
    rule = rule or Rule()

    def step(params, batch_stats, batch):
        outputs = functions.evaluate(params, batch_stats, normalize(batch["image"]))
        targets = losses.targets(batch["label"], outputs.logits.shape[-1])
        rows = {"mask": batch["mask"], "label": batch["label"], **_head(outputs.logits, targets, batch["label"], "")}
        if outputs.preview_logits is not None:
            rows |= _head(outputs.preview_logits, targets, batch["label"], "preview_")
            rows["confidence"] = rule.confidence(outputs.preview_logits)
        if outputs.coefficients is not None:
            rows["coefficients"] = outputs.coefficients
        if logits:
            rows["probability"] = early_exit.confidence(outputs.logits)
            if outputs.preview_logits is not None:
                rows["preview_logits"] = outputs.preview_logits.astype(jnp.float32)
        return rows

    step = jax.jit(partition.inside(mesh, step))

    def per_example(params, batch_stats, batches):
        gathered = []
        for batch in batches:
            batch = {"mask": np.ones(len(batch["label"]), bool), **batch}
            rows = step(params, batch_stats, partition.global_batch(batch, mesh))
            if jax.process_count() > 1:
                rows = multihost_utils.process_allgather(rows, tiled=True)
            gathered.append(jax.tree.map(np.asarray, rows))
        columns = {name: np.concatenate([rows[name] for rows in gathered]) for name in gathered[0]}
        mask = columns.pop("mask").astype(bool)
        return {name: column[mask] for name, column in columns.items()}

    return per_example


def summarize(per_example: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over the examples, summed in double precision and divided once; of coefficients, how far images differ.

    "majority_top1" is that of always answering with the class that has most of the examples, and "balanced_accuracy"
    the mean recall of the classes.
    """
    means = {
        name: float(np.sum(column, dtype=np.float64) / len(column))
        for name, column in per_example.items()
        if name.removeprefix("preview_") in METRICS
    }
    labels = per_example["label"]
    means["majority_top1"] = float(np.bincount(labels).max() / len(labels))
    for name in ("prediction", "preview_prediction"):
        if name in per_example:
            balanced = by_class.balanced_accuracy(labels, per_example[name])
            means[name.replace("prediction", "balanced_accuracy")] = balanced
    if "coefficients" in per_example:
        means |= coefficients.spread_of(per_example["coefficients"])
    return {**means, "num_examples": len(per_example["top1"])}


def table(report: dict) -> str:
    """The report as the short table that ends a training run."""
    classes = report.get("classes")  # an evaluation of before has none
    columns = {"top1": "top-1", "balanced_accuracy": "balanced", "top5": "top-5", "loss": "loss"}
    if not classes:
        del columns["balanced_accuracy"]
    elif len(classes) <= 5:  # of which each is among the best five
        del columns["top5"]

    def row(name, numbers, cost):
        shown = (f"{numbers[metric]:.4f}" if metric in numbers else "" for metric in columns)
        return name, *shown, cost

    rows = [("", *columns.values(), "MAdds per image")]
    if classes:
        guess = {"top1": report["majority_top1"], "balanced_accuracy": 1 / sum(of["count"] > 0 for of in classes)}
        rows.append(row("majority baseline", guess, f'always answers "{report["majority_class"]}"'))
    if "early_termination" in report:
        preview = {metric: report[f"preview_{metric}"] for metric in columns if f"preview_{metric}" in report}
        rows.append(row("preview", preview, f"{report['preview_madds'] / 1e6:.2f}M"))
    rows.append(row("final", report, f"{report['madds'] / 1e6:.2f}M"))
    if "early_termination" in report:
        early = report["early_termination"]
        cost = (
            f"{early['mean_madds'] / 1e6:.2f}M on average: {early['share']:.0%} stop at the preview "
            f"(confidence >= {early['threshold']:.3f}, {early['chosen_on']})"
        )
        rows.append(row("early termination", early, cost))
    title = f"{report['split']} split, {report['num_examples']} images, step {report['step']}, averaged weights"
    lines = [f"{name:<18}{''.join(f'{cell:>9}' for cell in cells)}  {cost}".rstrip() for name, *cells, cost in rows]
    of_classes = filter(None, [by_class.table(report), by_class.diagnosis(report)] if classes else [])
    return "\n".join([title, *lines, *(f"\n{part}" for part in of_classes)])


def provenance(config) -> dict:
    """What is needed beside a number to make it again: commit (None outside a git checkout), seed, device, time."""
    command = ["git", "-C", os.path.dirname(os.path.abspath(__file__)), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    return {
        "commit": commit,
        "seed": config.seed,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _head(logits, targets, labels, prefix: str) -> dict[str, jax.Array]:
    """Prediction, top-1, top-5 (of fewer classes, all) and loss of one head: [B] each."""
    _, best = jax.lax.top_k(logits.astype(jnp.float32), min(5, logits.shape[-1]))
    hits = best == labels[:, None]
    return {
        prefix + "prediction": best[:, 0],
        prefix + "top1": hits[:, 0].astype(jnp.float32),
        prefix + "top5": jnp.any(hits, axis=-1).astype(jnp.float32),
        prefix + "loss": losses.cross_entropy(logits, targets),
    }


def curve(per_example: dict[str, np.ndarray], costs: tuple[int, int]) -> list[early_exit.Point]:
    return early_exit.curve(per_example["confidence"], per_example["preview_top1"], per_example["top1"], *costs)
