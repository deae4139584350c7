"""StableHLO by `jax.export`: a file for each stage, for any number of images, on CPU, GPU or TPU.

`jax.export.deserialize(bytes).call(images)` runs it in later versions of JAX as well, for as long as jax.export's
guarantee of compatibility lasts (6 months).
"""

import pathlib

import jax
from jax import export

from basisnet_jax.export import stages
from basisnet_jax.ops import platforms


def write(run, rule, folder: pathlib.Path) -> dict:
    (batch,) = export.symbolic_shape("b")
    for stage in stages.of(run.model, run.preprocess, rule):
        specs = [jax.ShapeDtypeStruct((batch, *array.shape), array.dtype) for array in stage.inputs.values()]
        with platforms.paths_for("gpu"):
            exported = export.export(jax.jit(stage), platforms=stages.PLATFORMS)(*specs)
        (folder / f"{stage.name}.stablehlo").write_bytes(exported.serialize())
    return {"batch": "any", "platforms": stages.PLATFORMS}


def load(folder: pathlib.Path, manifest: dict) -> dict:
    def runner(name):
        return jax.jit(export.deserialize((folder / f"{name}.stablehlo").read_bytes()).call)

    return {name: runner(name) for name in manifest["stages"]}
