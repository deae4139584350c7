"""safetensors: the averaged weights as they are, and the config that makes the model of them.

`basisnet_jax.load(DIR)` gives the model back, in evaluation mode.
"""

import pathlib

import jax
import ml_collections
import numpy as np
import safetensors.numpy
from flax import nnx
from orbax.checkpoint import tree as trees

from basisnet_jax import models
from basisnet_jax.early_exit import Rule
from basisnet_jax.export import stages


def write(run, rule, folder: pathlib.Path) -> dict:
    arrays = trees.to_flat_dict({"params": run.params, "batch_stats": run.batch_stats})
    arrays = {"/".join(path): np.asarray(array) for path, array in arrays.items()}
    safetensors.numpy.save_file(arrays, folder / "weights.safetensors")
    return {"batch": "any", "config": run.config.to_dict()}


def load(folder: pathlib.Path, manifest: dict) -> dict:
    config, rule = ml_collections.ConfigDict(manifest["config"]), Rule(**manifest.get("early_exit", {}))
    return {stage.name: jax.jit(stage) for stage in stages.of(model(folder, manifest), config, rule)}


def model(folder: pathlib.Path, manifest: dict) -> nnx.Module:
    """The model with its weights, in evaluation mode."""
    built = models.create(ml_collections.ConfigDict(manifest["config"]))
    built.eval()
    arrays = safetensors.numpy.load_file(folder / "weights.safetensors")
    for kind, prefix in ((nnx.Param, "params"), (nnx.BatchStat, "batch_stats")):
        state = nnx.to_pure_dict(nnx.state(built, kind))
        named = jax.tree.map_with_path(
            lambda path, _, prefix=prefix: arrays["/".join([prefix, *(str(key.key) for key in path)])], state
        )
        nnx.update(built, nnx.State(named))
    return built
