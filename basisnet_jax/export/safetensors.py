"""safetensors: the averaged weights as they are, and the config that makes the model of them.

`basisnet_jax.load(DIR)` gives the model back, in evaluation mode.
"""

import pathlib

import jax
import ml_collections
import numpy as np
import safetensors.numpy
from flax import nnx

from basisnet_jax import models, preprocess
from basisnet_jax.early_exit import Rule
from basisnet_jax.errors import UserError
from basisnet_jax.export import stages
from basisnet_jax.workdir import runs


def write(run, rule, folder: pathlib.Path) -> dict:
    arrays = {name: np.asarray(array) for name, array in named(run.params, run.batch_stats).items()}
    safetensors.numpy.save_file(arrays, folder / "weights.safetensors")
    return {"batch": "any", "config": run.config.to_dict()}


def named(params: dict, batch_stats: dict) -> dict[str, jax.Array]:
    """Arrays by path, such as "params/preview/classifier/kernel"."""
    leaves, _ = jax.tree.flatten_with_path({"params": params, "batch_stats": batch_stats})
    return {"/".join(str(key.key) for key in path): array for path, array in leaves}


def load(folder: pathlib.Path, manifest: dict) -> dict:
    seen, rule = preprocess.of(ml_collections.ConfigDict(manifest["config"])), Rule(**manifest.get("early_exit", {}))
    return {stage.name: jax.jit(stage) for stage in stages.of(model(folder, manifest), seen, rule)}


def model(folder: pathlib.Path, manifest: dict) -> nnx.Module:
    """The model with its weights, in evaluation mode."""
    built = models.create(ml_collections.ConfigDict(runs.whole(manifest["config"])))
    functions = models.functional(built)
    arrays = safetensors.numpy.load_file(folder / "weights.safetensors")
    wanted, found = (
        {name: array.shape for name, array in arrays.items()}
        for arrays in (named(functions.params, functions.batch_stats), arrays)
    )
    if differing := sorted(name for name in wanted | found if wanted.get(name) != found.get(name)):
        name = differing[0]
        raise UserError(f"{folder}: {name} has the shape {found.get(name)}, expected {wanted.get(name)} by the config")
    tree = jax.tree.structure({"params": functions.params, "batch_stats": functions.batch_stats})
    state = tree.unflatten([arrays[name] for name in wanted])
    nnx.update(built, nnx.State(state["params"]), nnx.State(state["batch_stats"]))
    return built
