"""Each ingredient of the recipe switched on alone, over several seeds: what it does to a small BasisNet.

    python experiments/fashion_mnist/prepare.py                 (once: prepares the data without the internet)
    python experiments/ingredients.py --workdir=runs/ingredients --output=experiments/ingredients.csv

The plain recipe has none of the ingredients. Each row of the table adds one of them, the last but one adds them all;
"no preview loss" takes the joint training of both stages away instead. The difference is that to the plain recipe with
the same seed, its spread the standard deviation over the seeds. Tiny networks, 2,000 training images of Fashion-MNIST
at 14x14 pixels and 10 epochs are chosen so that all 45 runs end within the hour on two cores: this tells that each
ingredient works and what it does to small networks on little data; it says nothing about ImageNet. Finished runs are
not repeated.
"""

import argparse
import csv
import json
import os
import pathlib
import statistics

import jax
from basisnet_jax.configs import fashion_mnist

from basisnet_jax import cli, train

PLAIN = {
    "train_split": "train[:2000]",
    "image_size": 14,
    "preview.image_size": 8,
    "batch_size": 64,
    "num_epochs": 10.0,
    "eval_every_epochs": 10.0,
    "checkpoint_every_steps": 10**6,
    "label_smoothing": 0.0,
    "ema_decay": 0.0,
    "coefficients.dropout": 0.0,
    "coefficients.annealing_epochs": 0.0,
    "augment.shift": 0.0,
    "augment.flip": False,
    "augment.erasing": 0.0,
    "augment.policy": "",
}
INGREDIENTS = {
    "plain": {},
    "shift and flip": {"augment.shift": 0.08, "augment.flip": True},
    "AutoAugment": {"augment.policy": "cifar10"},
    "RandAugment": {"augment.policy": "randaugment", "augment.magnitude": 5.0},
    "random erasing": {"augment.erasing": 0.25},
    "mixup": {"augment.mixup": 0.2},
    "CutMix": {"augment.cutmix": 1.0},
    "label smoothing": {"label_smoothing": 0.1},
    "basis model dropout": {"coefficients.dropout": 0.0625},
    "annealed temperature": {"coefficients.initial_temperature": 10.0, "coefficients.annealing_epochs": 5.0},
    "EMA": {"ema_decay": 0.99},
    "distillation": {"distillation.weight": 0.5, "distillation.temperature": 2.0},
    "distillation, stored": {"distillation.weight": 0.5, "distillation.temperature": 2.0},
    "no preview loss": {"preview_loss_weight": 0.0},
}
TOGETHER = ("shift and flip", "random erasing", "label smoothing", "basis model dropout", "EMA", "distillation")
METRICS = ("top1", "preview_top1", "loss", "train_loss")


def make_config(name: str, seed: int, teacher: str, cache: str):
    config = fashion_mnist.get_config(f"seed={seed}")
    config.update_from_flattened_dict(PLAIN)
    for ingredient in TOGETHER if name == "together" else (name,):
        config.update_from_flattened_dict(INGREDIENTS[ingredient])
        if ingredient.startswith("distillation"):
            config.distillation.teacher = teacher
        if ingredient == "distillation, stored":
            config.distillation.cache = cache
    return config


def train_teacher(workdir: str) -> None:
    """A wider static network on all the training images: what a teacher has over its student here."""
    config = fashion_mnist.get_config("model=static,width=0.5")
    config.update(image_size=14, num_epochs=2.0)
    train.train(cli.resolve(config), workdir)


def one_run(config, workdir: str) -> dict[str, float]:
    report = train.train(cli.resolve(config), workdir)
    with open(os.path.join(workdir, "metrics.jsonl")) as file:
        last = [row for row in map(json.loads, file) if row["split"] == "train"][-1]
    return {**{name: report[name] for name in METRICS[:-1]}, "train_loss": last["final_loss"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="a CSV file")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    cli.quiet_logs()
    # Runs that differ in their seed alone compile once.
    jax.config.update("jax_compilation_cache_dir", str(args.workdir / "cache"))
    teacher, cache = str(args.workdir / "teacher"), str(args.workdir / "predictions")
    train_teacher(teacher)
    names = (*INGREDIENTS, "together")
    results = {}
    for seed in range(args.seeds):
        for name in names:
            workdir = args.workdir / name.replace(" ", "_").replace(",", "") / str(seed)
            results[name, seed] = one_run(make_config(name, seed, teacher, cache), str(workdir))
    with open(args.output, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ingredient", "seed", *METRICS])
        writer.writerows([name, seed, *row.values()] for (name, seed), row in results.items())
    print(f"\n{'':<22}{'top-1':>16}{'difference':>18}{'preview':>9}{'loss':>8}{'train loss':>12}")
    for name in names:
        rows = [results[name, seed] for seed in range(args.seeds)]
        differences = [row["top1"] - results["plain", seed]["top1"] for seed, row in enumerate(rows)]
        top1, change = spread([row["top1"] for row in rows]), spread(differences, "+")
        preview, loss, train_loss = (statistics.mean(row[name] for row in rows) for name in METRICS[1:])
        print(f"{name:<22}{top1:>16}{change:>18}{preview:>9.4f}{loss:>8.3f}{train_loss:>12.3f}")


def spread(values: list[float], sign: str = "") -> str:
    return f"{statistics.mean(values):{sign}.4f} ± {statistics.stdev(values) if len(values) > 1 else 0:.4f}"


if __name__ == "__main__":
    main()
