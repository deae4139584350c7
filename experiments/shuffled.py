"""Do the coefficients carry anything? Top-1 with each image's own, with those of another image, and with their mean.

    python experiments/shuffled.py --output=experiments/causes/shuffled.csv runs/causes/runs/seed=*

Takes every finished BasisNet in the given folders, which are workdirs of runs or of sweeps. A row each: `top1` as
trained; `shuffled_top1`, where the coefficients of a test batch are permuted among its images, the mean of five
permutations; `mean_top1`, where every image has the mean mixture of the test split.
"""

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tables import write_csv

from basisnet_jax import preprocess
from basisnet_jax.errors import UserError
from basisnet_jax.workdir import data_record, runs

PERMUTATIONS = 5


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=pathlib.Path, nargs="+", help="workdirs, of runs or of sweeps")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="the CSV file to write")
    flags = parser.parse_args(argv)
    try:
        folders = [path.parent for workdir in flags.runs for path in sorted(workdir.glob("**/evaluation.json"))]
        rows = [row for folder in folders if (row := shuffled(folder))]
        if not rows:
            given = " ".join(map(str, flags.runs))
            raise UserError(f"{given} holds no finished run of a BasisNet with more than one basis")
        write_csv(flags.output, rows)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def shuffled(folder: pathlib.Path) -> dict | None:
    """The row of the run in `folder`; None for other models, and where there is one basis only."""
    config = runs.load_config(str(folder))
    if config.model != "basisnet" or config.basis.num_bases == 1:
        return None
    run = runs.load(str(folder))
    graph, state = nnx.split(run.model)

    @jax.jit
    def coefficients(state, images):
        return nnx.merge(graph, state).preview_stage(preprocess.of(config).normalize(images))[1]

    @jax.jit
    def hits(state, batch, mixtures):
        logits = nnx.merge(graph, state).specialist_stage(preprocess.of(config).normalize(batch["image"]), mixtures)
        return jnp.sum((jnp.argmax(logits, -1) == batch["label"]) * batch["mask"])

    batches = list(data_record.opened(str(folder)).eval_batches(config.test_split))
    counts = [int(batch["mask"].sum()) for batch in batches]
    mixtures = [coefficients(state, batch["image"]) for batch in batches]
    mean = sum(m[:n].sum(axis=0) for m, n in zip(mixtures, counts, strict=True)) / sum(counts)
    random = np.random.default_rng(0)
    correct = {"top1": 0, "shuffled_top1": 0, "mean_top1": 0}
    for batch, mixture, count in zip(batches, mixtures, counts, strict=True):
        correct["top1"] += hits(state, batch, mixture)
        correct["mean_top1"] += hits(state, batch, jnp.broadcast_to(mean, mixture.shape))
        for _ in range(PERMUTATIONS):  # of the images, not of what fills up the last batch
            order = np.concatenate([random.permutation(count), np.arange(count, len(mixture))])
            correct["shuffled_top1"] += hits(state, batch, mixture[order]) / PERMUTATIONS
    about = {"run": folder.name, "width": config.network.width, "num_bases": config.basis.num_bases}
    top1 = {name: f"{float(number) / sum(counts):.5f}" for name, number in correct.items()}
    print(about | top1, flush=True)
    return {**about, "seed": config.seed, **top1}


if __name__ == "__main__":
    sys.exit(main())
