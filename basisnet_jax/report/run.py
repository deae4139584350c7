"""The page of one run: what it is, what it reached and cost, how it learned, when it stops, what it mixes."""

import shlex

from basisnet_jax import madds
from basisnet_jax.configs import default
from basisnet_jax.early_exit import Point
from basisnet_jax.inference import evaluate
from basisnet_jax.report import classes, early_termination, figures, measure, mixtures, page
from basisnet_jax.report.measure import Measured
from basisnet_jax.report.page import Html, element, millions, percent
from basisnet_jax.workdir import checkpoint, runs


def render(workdir: str, which: str | None, split: str | None, images: int) -> Html:
    """The page, with galleries of the first so many images and as many points at most in the projection."""
    log = measure.read_log(workdir)
    measured = measure.measure(workdir, which, split, images)
    config = measured.run.config
    curve, chosen = measure.stopping_curve(measured)
    found = measure.by_class_of(measured)
    return page.document(
        f"{config.dataset}: {kind(config)}",
        page.joined(facts(measured), progress(workdir, measured), classes.warning(found), tiles(measured, chosen)),
        {
            "Results and cost": results(measured, found, chosen),
            "Classes": classes.section(measured, found),
            "Learning curves": learning(log),
            "Early termination": early_termination.section(workdir, measured, curve, chosen),
            "Coefficients": mixtures.section(measured, images),
            "Images": early_termination.galleries(measured),
            "Configuration": configuration(config),
            "How to make this page again": provenance(workdir, measured, images),
        },
    )


def kind(config) -> str:
    if config.model == "static":
        return f"static {config.network.name}"
    if config.model == "routed":
        return f"{config.network.name}, {config.basis.num_bases} bases that its own layers mix"
    return f"BasisNet, {config.basis.num_bases} bases"


def facts(measured: Measured) -> Html:
    """What all numbers of the page are of."""
    config = measured.run.config

    def network(fields, size):
        width = f", width {fields.width:g}" if isinstance(fields.get("width"), int | float) else ""
        return f"{fields.name}{width}, {size} x {size} pixels"

    if config.model == "basisnet":
        pairs = {"Preview": network(config.preview, config.preview.image_size)}
        pairs["Specialist"] = network(config.network, config.image_size)
    else:
        pairs = {"Network": network(config.network, config.image_size)}
    if measured.layers:
        pairs["Bases"] = f"{config.basis.num_bases}, mixtures per image: {len(measured.layers)}"
    pairs["Checkpoint"] = f"step {measured.run.step:,}, averaged weights"
    pairs["Measured on"] = f"{measured.split} split, {len(measured.rows['top1']):,} images"
    if rule := measured.rule:
        pairs["Stops at"] = f"{rule.criterion} ≥ {rule.threshold:.4f}, {measure.origin(rule)}"
    return page.terms(pairs)


def progress(workdir: str, measured: Measured) -> Html | None:
    """A note if the run is not finished, or was never trained."""
    config = measured.run.config
    if measured.run.step == 0:
        return element("p", "These weights were imported or extracted, not trained in this workdir.", class_="note")
    total, newest = round(config.num_epochs * measured.data.steps_per_epoch()), checkpoint.newest(workdir)
    if newest >= total:
        return None
    text = f"This run is not finished: its newest checkpoint is of step {newest:,} of {total:,}."
    return element("p", text, class_="note")


def tiles(measured: Measured, chosen: Point | None) -> Html:
    """The page in three numbers."""
    rows, items = measured.rows, measured.items

    def tile(name, top1, cost):
        value, below = element("strong", percent(top1)), element("small", cost)
        return element("div", element("span", name), value, below)

    shown = []
    if measured.has_preview:
        cost = f"{millions(madds.preview_only(items))} multiply-adds"
        shown.append(tile("preview's top-1", rows["preview_top1"].mean(dtype=float), cost))
    cost = f"{millions(madds.total(items))} multiply-adds an image"
    shown.append(tile("final top-1", rows["top1"].mean(dtype=float), cost))
    if chosen:
        cost = f"{millions(chosen.mean_madds)} on average, {percent(chosen.share, 0)} of the images stop"
        shown.append(tile("top-1 with early termination", chosen.top1, cost))
    return element("div", *shown, class_="tiles")


def results(measured: Measured, found: dict, chosen: Point | None) -> Html:
    """Accuracy of both heads, and where the multiply-adds go; `found` as of `measure.by_class_of`."""
    items = measured.items
    total = madds.total(items)
    columns = {"top1": "top-1", "balanced_accuracy": "balanced accuracy", "top5": "top-5", "loss": "loss"}
    if len(measured.classes) <= 5:  # each is among the best five
        del columns["top5"]

    def reached(name, numbers, spent):
        cells = ((metric, numbers.get(metric)) for metric in columns)
        shown = ("" if x is None else f"{x:.4f}" if metric == "loss" else percent(x) for metric, x in cells)
        return [name, *shown, spent]

    accuracies = [reached(f"always “{found['majority_class']}”", {"top1": found["majority_top1"]}, "")]
    if measured.has_preview:
        preview = {metric: found[f"preview_{metric}"] for metric in columns}
        accuracies.append(reached("preview", preview, millions(madds.preview_only(items))))
    accuracies.append(reached("final", found, millions(total)))
    if chosen:
        early = found["early_termination"]
        accuracies.append(reached("early termination", early, millions(chosen.mean_madds)))
    params: dict[str, int] = {}
    for item in items:
        params[item.stage] = params.get(item.stage, 0) + item.params
    spent = [
        [part, millions(cost), percent(cost / total, 1), f"{params.get(part, 0):,}"]
        for part, cost in madds.summary(items).items()
    ]
    spent.append(["in all", millions(total), percent(1, 1), f"{sum(params.values()):,}"])
    header = ("layer", "part", "kind", "multiply-adds", "parameters")
    by_layer = [[item.name, item.stage, item.kind, f"{item.madds:,}", f"{item.params:,}"] for item in items]
    return page.joined(
        page.figures(
            page.table(
                ("", *columns.values(), "MAdds"),
                accuracies,
                caption=f"Accuracy on the {measured.split} split, {found['num_examples']:,} images; MAdds of an image. "
                "Balanced accuracy is the mean recall of the classes.",
            ),
            page.table(
                ("part", "MAdds", "share", "parameters"),
                spent,
                caption="The MAdds of an image that does not stop. Parameters are those of kernels and biases.",
            ),
        ),
        page.folded(f"All {len(items)} items of the count", page.table(header, by_layer, texts=3)),
    )


def learning(log: dict) -> Html | None:
    """Loss, accuracy and what became of the coefficients, by training step; None where nothing was logged."""
    train, validation = log.get("train", {}), log.get("validation", {})
    losses = {
        "final, training": train.get("final_loss", train.get("loss")),
        "final, validation": validation.get("loss"),
        "preview, training": train.get("preview_loss"),
        "preview, validation": validation.get("preview_loss"),
    }
    top1 = {
        "final, training": train.get("top1"),
        "final, validation": validation.get("top1"),
        "preview, training": train.get("preview_top1"),
        "preview, validation": validation.get("preview_top1"),
    }
    mixing = {
        "entropy of the mixtures": train.get("coefficient_entropy"),
        "least usage of a basis": train.get("least_basis_usage"),
    }
    shown = []
    for title, lines, caption in (
        ("Loss", losses, "Training: batches as trained on. Validation: the split with its plain labels."),
        ("Top-1", top1, "Training batches are augmented, and predicted with the weights of that step."),
        ("Coefficients", mixing, "At an entropy of 1 mixtures are even. A least usage of 0 means a dead basis."),
    ):
        if lines := {name: points for name, points in lines.items() if points}:
            last = max(points[-1][0] for points in lines.values())
            alt = f"Curves up to training step {last:,}: {'; '.join(lines)}."
            shown.append(page.picture(figures.learning_curves(lines), title, caption, alt))
    return page.figures(*shown) if shown else None


def configuration(config) -> Html:
    """What differs from the defaults; folded, all of it."""
    ours, defaults = runs.flat(config.to_dict()), runs.flat(default.get_config().to_dict())
    shown = {name: str(value) for name, value in sorted(ours.items())}
    differing = {name: text for name, text in shown.items() if ours[name] != defaults.get(name)}
    return page.joined(
        element("p", f"{len(differing)} of {len(ours)} fields differ from configs/default.py:"),
        page.terms(differing),
        page.folded("All fields", page.terms(shown)),
    )


def provenance(workdir: str, measured: Measured, images: int) -> Html:
    made = evaluate.provenance(measured.run.config)
    flags = {"workdir": workdir, "checkpoint": measured.run.step, "split": measured.split, "images": images}
    command = " ".join(["basisnet report", *(shlex.quote(f"--{name}={value}") for name, value in flags.items())])
    return page.joined(
        element("pre", element("code", command), tabindex=0),
        page.terms({name: value for name, value in made.items() if value is not None}),
    )
