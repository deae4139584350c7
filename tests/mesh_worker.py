"""What tests/mesh_test.py runs in processes of their own, with as many simulated devices as each needs.

python mesh_worker.py VARIANT CONFIG.json OUTPUT.npz
"""

import json
import sys
from functools import partial

import jax
import ml_collections
import numpy as np
from orbax.checkpoint import tree as trees

from basisnet_jax import checkpoint, evaluate, models, optimizer, partition
from basisnet_jax.data import pipeline
from basisnet_jax.train_step import create_state, make_train_step

STEPS = 3
partition.SMALLEST = 2**8  # the networks here are small: split what they have


def start(config, mesh):
    """The first state on the mesh, its shardings and the jitted step."""
    functions = models.functional(models.create(config))
    tx = optimizer.create(config.optimizer, lambda step: config.optimizer.learning_rate)
    make = partial(create_state, tx=tx)
    shardings = partition.of_state(jax.eval_shape(make, functions.params, functions.batch_stats), mesh)
    state = jax.jit(make, out_shardings=shardings)(functions.params, functions.batch_stats)
    step = jax.jit(
        make_train_step(config, functions, tx),
        donate_argnums=0,
        out_shardings=(shardings, partition.replicated(mesh)),
    )
    return functions, state, step


def main(variant: str, config_file: str, output: str) -> None:
    with open(config_file) as file:
        config = ml_collections.ConfigDict(json.load(file))
    mesh = partition.create_mesh(config.batch_size, config.fsdp)
    functions, state, step = start(config, mesh)
    result = {}
    if variant == "steps" or variant.startswith("permuted:"):
        # permuted:n puts the examples i, i + n, ... next to each other, for each i < n.
        parts = int(variant.partition(":")[2] or 1)
        order = np.arange(config.batch_size).reshape(-1, parts).T.ravel()
        batches = pipeline.train_batches(config)
        if parts > 1:
            batches = ({name: column[order] for name, column in batch.items()} for batch in batches)
        batches = partition.on_device(batches, mesh)
        for _ in range(STEPS):
            state, metrics = step(state, next(batches), jax.random.key(0))
        result = {f"metrics/{name}": np.asarray(value) for name, value in metrics.items()}
        result["split"] = np.asarray(sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state)))
    elif variant == "evaluate":
        per_example = evaluate.make_per_example(config, functions, mesh)
        result = per_example(state.params, state.batch_stats, config.test_split)
    elif variant.startswith("save:"):
        with checkpoint.manager(variant.removeprefix("save:"), keep=1) as checkpoints:
            checkpoint.save(checkpoints, 1, state)
    elif variant.startswith("restore:"):  # and save again, for the next mesh
        with checkpoint.manager(variant.removeprefix("restore:"), keep=3) as checkpoints:
            before = checkpoints.latest_step()
            state = checkpoint.restore(checkpoints, before, state)
            checkpoint.save(checkpoints, before + 1, state)
            checkpoints.wait_until_finished()
    if variant != "evaluate":
        gathered = jax.jit(lambda state: state, out_shardings=partition.replicated(mesh))(state)
        result |= {"/".join(path): np.asarray(leaf) for path, leaf in trees.to_flat_dict(gathered).items()}
    if jax.process_index() == 0:
        np.savez(output, **result)


if __name__ == "__main__":
    if len(sys.argv) > 4:
        partition.initialize(sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
    main(*sys.argv[1:4])
