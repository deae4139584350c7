"""When to stop at the preview, for a budget of multiply-adds or an allowed loss of accuracy: `early_exit.json`.

Threshold, temperature and figures are all of the held-out split (config.validation_split). What was chosen on the same
images that measure it looks better than it is, though little: one number or two are chosen on all of them.
"""

import os

import numpy as np

from basisnet_jax import early_exit, madds
from basisnet_jax.distributed import partition
from basisnet_jax.errors import UserError
from basisnet_jax.inference import evaluate
from basisnet_jax.workdir import checkpoint, data_record, files, runs

LEVEL, RESAMPLES, SEED = 0.95, 2000, 0  # of the bootstrap
TEMPERATURES = 0.05, 20.0  # between which one is looked for


def calibrate(
    workdir: str,
    *,
    target_madds: float | None = None,
    max_drop: float | None = None,
    which: str | None = None,
    criterion: str = "max_softmax",
    temperature_scaling: bool = False,
) -> dict:
    """Finds the rule by which images stop, writes it with its figures to `early_exit.json` and returns that.

    Args:
      workdir: of a run of a BasisNet.
      target_madds: multiply-adds per image, on average; the threshold is the highest that keeps within them. Or:
      max_drop: the top-1, as a fraction, that early termination may cost; the threshold saves as much as it can.
      which: a step, "best" (on the validation split), or None for the newest.
      criterion: one of `early_exit.CRITERIA`.
      temperature_scaling: divides the preview's logits by the temperature at which its likelihood is highest.

    Raises:
      UserError: a value is out of range, or there is no such run or checkpoint, or it has no preview.
    """
    if criterion not in early_exit.CRITERIA:
        raise UserError(f"--criterion={criterion!r}, expected one of {', '.join(early_exit.CRITERIA)}")
    if max_drop is not None and not 0 <= max_drop <= 1:
        raise UserError(f"--max_drop={max_drop:g}, expected a fraction from 0 to 1")
    config = runs.load_config(workdir)
    if config.model != "basisnet":
        raise UserError(f"{workdir} holds a {config.model!r} model, which has no preview to stop at")
    runs.check_writable(workdir)
    run = runs.load(workdir, which)
    costs = madds.preview_only(run.items), madds.total(run.items)
    if target_madds is not None and not costs[0] <= target_madds <= costs[1]:
        limits = f"from {costs[0]:,} (all images stop) to {costs[1]:,} (none does)"
        raise UserError(f"--target_madds={target_madds:,.0f}, expected {limits}")

    data = data_record.opened(workdir)
    mesh = partition.create_mesh(config.eval_batch_size, config.fsdp)
    per_example = evaluate.make_per_example(run.functions, run.preprocess.normalize, mesh, logits=True)
    rows = per_example(run.params, run.batch_stats, data.eval_batches(config.validation_split))
    temperature = fit_temperature(rows["preview_logits"], rows["label"]) if temperature_scaling else 1.0
    rule = early_exit.Rule(criterion=criterion, temperature=temperature)
    confidence = np.asarray(rule.confidence(rows["preview_logits"]))
    points = early_exit.curve(confidence, rows["preview_top1"], rows["top1"], *costs)
    by_drop = target_madds is None
    threshold = early_exit.choose(points, max_drop) if by_drop else early_exit.within(points, target_madds)
    point = early_exit.at(points, threshold)
    stops = rule._replace(threshold=threshold).stops(confidence)
    report = {
        "step": run.step,
        "checkpoint": checkpoint.fingerprint(workdir, run.step),
        "criterion": criterion,
        "temperature": temperature,
        **point._asdict(),
        "final_top1": points[0].top1,
        "drop": points[0].top1 - point.top1,
        "madds": costs[1],
        "preview_madds": costs[0],
        "target": {"max_drop": max_drop} if by_drop else {"target_madds": target_madds},
        "split": config.validation_split,
        "num_examples": len(confidence),
        "intervals": {
            **intervals(stops, rows["preview_top1"], rows["top1"], *costs),
            "level": LEVEL,
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        "provenance": evaluate.provenance(config),
    }
    path = os.path.join(workdir, "early_exit.json")
    try:
        files.write_json(path, report)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", result=table(report)) from error
    return report


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in 0.05..20 at which logits [examples, classes] divided by it have the least cross-entropy.

    Guo et al. 2017, section 4.2. The loss is convex in the inverse temperature, so that bisection of its slope, which
    is the mean logit under the softmax less that of the label, finds the least.
    """
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    of_label = np.take_along_axis(logits, np.asarray(labels)[:, None], axis=-1)[:, 0]

    def slope(temperature):
        weights = np.exp(logits / temperature)
        return np.mean(np.sum(weights * logits, axis=-1) / np.sum(weights, axis=-1) - of_label)

    low, high = np.log(TEMPERATURES)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(np.exp(middle)) > 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def intervals(
    stops: np.ndarray, preview_correct: np.ndarray, correct: np.ndarray, preview_madds: float, madds: float
) -> dict[str, list[float]]:
    """95 % percentile bootstrap intervals of mean multiply-adds and drop in top-1, by 2000 resamples; [examples] each.

    All that matters of an image is whether it stops and whether that loses or gains the right answer: a resample of
    the images is a multinomial draw of how many there are of each of these kinds.
    """
    lost = np.where(stops, correct - preview_correct, 0)
    kinds = np.array([np.sum(~stops), *(np.sum(stops & (lost == value)) for value in (-1, 0, 1))])
    shares = np.random.default_rng(SEED).multinomial(len(stops), kinds / len(stops), RESAMPLES) / len(stops)
    share = 1 - shares[:, 0]
    drawn = {
        "mean_madds": share * preview_madds + (1 - share) * madds,
        "drop": shares[:, 3] - shares[:, 1],
    }
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {name: np.quantile(values, ends).tolist() for name, values in drawn.items()}


def table(report: dict) -> str:
    """The calibration as a few lines."""
    found, before = report["intervals"], report["final_top1"]
    low, high = (cost / 1e6 for cost in found["mean_madds"])
    least, most = found["drop"]
    fitted = f" of logits over {report['temperature']:.3f}" if report["temperature"] != 1 else ""
    return f"""\
{report["split"]} split, {report["num_examples"]} images, step {report["step"]}, averaged weights
threshold   {report["threshold"]:.4f}, {report["criterion"]}{fitted}: {report["share"]:.0%} stop at the preview
mean MAdds  {report["mean_madds"] / 1e6:.2f}M [{low:.2f}M, {high:.2f}M], {report["madds"] / 1e6:.2f}M if none stops
top-1       {report["top1"]:.4f}, {before:.4f} if none stops: drop {report["drop"]:.4f} [{least:.4f}, {most:.4f}]
In brackets {found["level"]:.0%} intervals by bootstrap: {found["resamples"]} resamples, seed {found["seed"]}."""
