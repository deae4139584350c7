"""TensorFlow Lite: one file, a signature for each stage, run by LiteRT; one image at a time.

`precision` is that of the stored weights. float16 halves the file; int8 is dynamic-range quantization: the weights that
are known beforehand, the bases among them, are quantized, what is computed from the image is not. Of a convolution each
output channel has a scale. Bases are the matrix of a product, of which TensorFlow Lite would give each row a scale: one
for the N numbers of each place in a kernel, more bytes than the numbers themselves. They have one scale in all.
"""

import os
import pathlib
import tempfile
from collections.abc import Iterable

import jax
import numpy as np
from flax import nnx

from basisnet_jax.export import stages
from basisnet_jax.export.requirements import required
from basisnet_jax.export.tensorflow_call import called_by_tensorflow
from basisnet_jax.ops import platforms

PRECISIONS = ("float32", "float16", "int8")
SMALL = 1024  # numbers: a smaller array is not quantized


def write(run, rule, folder: pathlib.Path, precision: str = "float32") -> dict:
    import tensorflow as tf

    required("ai_edge_litert")  # to run it, which verification does
    with platforms.paths_for("gpu"):
        of_model = stages.of(run.model, run.preprocess, rule, kernels="hwio", one_scale=precision == "int8")
        module, signatures = traced(of_model)
    with tempfile.TemporaryDirectory(dir=folder) as saved_model:
        tf.saved_model.save(module, saved_model, signatures)
        converter = tf.lite.TFLiteConverter.from_saved_model(saved_model, signature_keys=list(signatures))
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        converter._experimental_disable_per_channel_quantization_for_dense_layers = True  # there is no public name
        (folder / "model.tflite").write_bytes(converter.convert())
    weights = jax.tree.leaves(nnx.state(stages.folded(run.model), nnx.Param))
    return {"precision": precision, "weight_bytes": weight_bytes(weights)}


def weight_bytes(weights: Iterable[np.ndarray]) -> dict[str, int]:
    """What all weights take, by precision; computed. With int8, small arrays stay as they are; scales are left out."""
    sizes = [np.size(weight) for weight in weights]
    int8 = sum(size if size >= SMALL else 4 * size for size in sizes)
    return {"float32": 4 * sum(sizes), "float16": 2 * sum(sizes), "int8": int8}


def traced(of_model: list[stages.Stage]):
    """A `tf.Module` and the signature of it for each stage, its batch fixed to one."""
    import tensorflow as tf

    module, signatures = tf.Module(), {}
    for stage in of_model:
        inputs = [jax.ShapeDtypeStruct((1, *array.shape), array.dtype) for array in stage.inputs.values()]
        specs = [tf.TensorSpec((1, *array.shape), array.dtype, name=key) for key, array in stage.inputs.items()]
        called = called_by_tensorflow(stage, ("cpu",), *inputs)
        function = tf.function(called, input_signature=specs, autograph=False)
        setattr(module, stage.name, function)
        signatures[stage.name] = function.get_concrete_function()
    return module, signatures


def load(folder: pathlib.Path, manifest: dict, threads: int | None = None) -> dict:
    """A function for each stage, on so many threads; None: on all cores."""
    litert = required("ai_edge_litert.interpreter")
    interpreter = litert.Interpreter(str(folder / "model.tflite"), num_threads=threads or os.cpu_count())

    def runner(name):
        run = interpreter.get_signature_runner(name)
        keys = list(manifest["stages"][name]["inputs"])
        return lambda *arrays: run(**dict(zip(keys, map(np.asarray, arrays), strict=True)))

    return {name: runner(name) for name in manifest["stages"]}
