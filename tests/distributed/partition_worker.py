"""What partition_test.py runs in processes of their own, with as many simulated devices as each needs.

    python partition_worker.py CONFIG.json JOBS.json FOLDER [COORDINATOR PROCESSES PROCESS]

JOBS.json holds {name: {"variant", "fields"}}; the arrays of each job go to FOLDER/name.npz.
"""

import itertools
import json
import os
import sys
from functools import cache

import conftest
import jax
import ml_collections
import numpy as np
from orbax.checkpoint import tree as trees

from basisnet_jax import models, preprocess
from basisnet_jax.data import pipeline
from basisnet_jax.distributed import partition, processes
from basisnet_jax.inference import evaluate
from basisnet_jax.training.step import build_step
from basisnet_jax.workdir import checkpoint

STEPS = 3
conftest.trace_quickly()
partition.SMALLEST = 2**8  # the networks here are small: split what they have


@cache
def functional(config: str) -> models.Functional:
    return models.functional(models.create(ml_collections.ConfigDict(json.loads(config))))


def start(config, mesh):
    """The functional, the first state on the mesh and the jitted step."""
    functions = functional(ml_collections.ConfigDict({**config, "fsdp": 1, "accumulate": 1}).to_json())
    config.optimizer.warmup_epochs = 0.0
    step = build_step(config, functions, steps_per_epoch=1000, mesh=mesh)
    return functions, step.create_state(functions.params, functions.batch_stats), step.run


def run(variant: str, config, batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    mesh = partition.create_mesh(config.batch_size, config.fsdp)
    functions, state, step = start(config, mesh)
    kind, _, argument = variant.partition(":")
    result = {}
    if kind == "evaluate":
        per_example = evaluate.make_per_example(functions, preprocess.of(config).normalize, mesh)
        splits = (pipeline.open(config).eval_batches(f"test[:{size}]") for size in argument.split(","))
        rows = [per_example(state.params, state.batch_stats, batches) for batches in splits]
        return {f"{i}/{name}": column for i, row in enumerate(rows) for name, column in row.items()}
    if kind == "steps":  # steps:n puts the examples i, i + n, ... next to each other, for each i < n
        order = np.arange(config.batch_size).reshape(-1, int(argument or 1)).T.ravel()
        # Hosts read shares of the data, so which examples make a batch depends on their number. Here it must not.
        order = order.reshape(jax.process_count(), -1)[jax.process_index()]
        batches = ({name: column[order] for name, column in batch.items()} for batch in batches)
        batches = partition.on_device(batches, mesh)
        for batch in batches:
            state, metrics = step(state, batch, jax.random.key(0))
        result = {f"metrics/{name}": np.asarray(value) for name, value in metrics.items()}
        result["split"] = np.asarray(sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state)))
    elif kind == "save":
        with checkpoint.manager(argument, keep=1) as checkpoints:
            checkpoint.save(checkpoints, 1, state)
    elif kind == "restore":  # and save again, for the next mesh
        with checkpoint.manager(argument, keep=3) as checkpoints:
            before = checkpoints.latest_step()
            state = checkpoint.restore(checkpoints, before, state)
            checkpoint.save(checkpoints, before + 1, state)
    gathered = jax.jit(lambda state: state, out_shardings=partition.replicated(mesh))(state)
    return result | {"/".join(path): np.asarray(leaf) for path, leaf in trees.to_flat_dict(gathered).items()}


def main(config_file: str, jobs_file: str, folder: str) -> None:
    with open(config_file) as file:
        config = json.load(file)
    with open(jobs_file) as file:
        jobs = json.load(file)
    plain = ml_collections.ConfigDict(config)
    batches = list(itertools.islice(pipeline.open(plain).train_batches(process_index=0, process_count=1), STEPS))
    for name, job in jobs.items():
        changed = ml_collections.ConfigDict(config)
        changed.update(job["fields"])
        result = run(job["variant"], changed, batches)
        if jax.process_index() == 0:
            np.savez(os.path.join(folder, f"{name}.npz"), **result)


if __name__ == "__main__":
    with processes.joined(*sys.argv[4:]):
        main(*sys.argv[1:4])
