"""Writes the configs and the data of sweeps for `train.py`, which then needs no TensorFlow.

python experiments/vmapped/prepare.py --output=DIR experiments/front/fashion_mnist.py experiments/front/glyphs.py

DIR/runs.json holds the runs, in the order of the sweep files; DIR/DATASET.npz a data set's images and labels, and what
the teacher says of the training images, if one run has a teacher.
"""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Callable

import ml_collections
import numpy as np

from basisnet_jax import madds, models, preprocess, sweep
from basisnet_jax.data.pipeline import Dataset
from basisnet_jax.data.source import Source
from basisnet_jax.errors import UserError
from basisnet_jax.inference import evaluate
from basisnet_jax.training import distillation
from basisnet_jax.workdir import files

ROOT = pathlib.Path(__file__).resolve().parents[2]  # of the repository: `collect.py` writes beside the sweep files
SPLITS = "train", "validation", "test", "train_eval"
FIELDS = ("image_size", "channels", "resize", "eval_crop", "data_dir", *(f"{name}_split" for name in SPLITS))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="+", help="sweep files")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    flags = parser.parse_args(argv)
    try:
        flags.output.mkdir(parents=True, exist_ok=True)
        find = functools.cache(Source)
        found = [(file, run) for file in flags.sweeps for run in made(file, find)]
        wanted = data_sets([run for _, run in found])
        files.write_json(str(flags.output / "runs.json"), [described(*pair) for pair in found])
        for run in wanted:
            np.savez_compressed(flags.output / f"{run.config.dataset}.npz", **arrays(run.config, run.data))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(found)} runs, {', '.join(path.name for path in sorted(flags.output.iterdir()))}")
    return 0


def made(file: str, find: Callable[..., Source]) -> list[sweep.Variant]:
    if not pathlib.Path(file).resolve().is_relative_to(ROOT):
        raise UserError(f"{file} is not in {ROOT}, expected a sweep file of this repository")
    common, _, yielded = sweep.load(file)
    return [sweep.make_run(common, overrides, pathlib.Path("runs"), find) for overrides in yielded]


def data_sets(of: list[sweep.Variant]) -> list[sweep.Variant]:
    """A run of each data set. Those of one data set must want the same arrays of it, and the same teacher if any."""
    found = {}
    for run in of:
        config = run.config
        other = found.setdefault(config.dataset, run).config
        for field in FIELDS:
            if other[field] != config[field]:
                raise UserError(f"runs want config.{field} {other[field]!r} and {config[field]!r} of one data set")
        if teacher := config.distillation.teacher:
            if not config.distillation.cache:
                raise UserError(f"a run has the teacher {teacher} without config.distillation.cache")
            if other.distillation.teacher not in ("", teacher):
                raise UserError(f"runs want two teachers, {other.distillation.teacher} and {teacher}")
            found[config.dataset] = run
    return list(found.values())


def described(file: str, run: sweep.Variant) -> dict:
    """A run as plain data: what `train.py` needs, and what a row of the CSV file names."""
    config = json.loads(json.dumps(run.config.to_dict()))
    return {
        "sweep": str(pathlib.Path(file).resolve().relative_to(ROOT)),
        "name": run.name,
        "config": config,
        "varied": {key.removeprefix("config."): value for key, value in run.yielded.items() if "." in key},
        "total_steps": run.steps,
        "steps_per_epoch": run.data.steps_per_epoch(),
        **cost(json.dumps({**config, "seed": 0, "optimizer": None})),
        "commit": evaluate.provenance(run.config)["commit"],
    }


@functools.cache
def cost(config: str) -> dict[str, int]:
    config = ml_collections.ConfigDict(json.loads(config))
    items = madds.count(models.create_abstract(config), preprocess.of(config).shape)
    return {
        "madds": madds.total(items),
        "preview_madds": madds.preview_only(items) if config.model == "basisnet" else 0,
    }


def arrays(config, data: Dataset) -> dict[str, np.ndarray]:
    """{"SPLIT image": uint8 [n, H, W, C], "SPLIT label": [n]} of a config's splits, as they are.

    With a teacher also "SPLIT teacher", its logits [n, classes], of the training split.
    """
    found = {}
    for split in dict.fromkeys(config[f"{name}_split"] for name in SPLITS):
        taught = config.distillation.teacher and split == config.train_split
        batches = data.eval_batches(split, ids=bool(taught))
        batches = ({name: rows[batch["mask"].astype(bool)] for name, rows in batch.items()} for batch in batches)
        if taught:
            teacher = distillation.load(config.distillation, config.num_classes, config.channels)
            batches = distillation.with_stored(batches, data, teacher, config.distillation.cache)
        batches = list(batches)
        for name in ("image", "label", *(["teacher"] if taught else [])):
            found[f"{split} {name}"] = np.concatenate([batch[name] for batch in batches])
    return found


if __name__ == "__main__":
    sys.exit(main())
