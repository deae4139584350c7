"""SavedModel: the stages as signatures, for any number of images, on CPU, GPU or TPU, the weights stored once."""

import functools
import pathlib

import jax
from jax import export

from basisnet_jax.export import stages
from basisnet_jax.export.tensorflow_call import called_by_tensorflow
from basisnet_jax.ops import platforms


def write(run, rule, folder: pathlib.Path) -> dict:
    import tensorflow as tf

    module, signatures = tf.Module(), {}
    of_model = stages.of(run.model, run.preprocess, rule)
    weights = of_model[0].weights
    module.weights = variables = [tf.Variable(array) for array in weights]  # as constants they would be stored twice
    (batch,) = export.symbolic_shape("b")
    for stage in of_model:
        inputs = [jax.ShapeDtypeStruct((batch, *array.shape), array.dtype) for array in stage.inputs.values()]
        with platforms.paths_for("gpu"):
            called = called_by_tensorflow(stage.function, stages.PLATFORMS, weights, *inputs)
        function = tf.function(functools.partial(called, variables), autograph=False)
        setattr(module, stage.name, function)
        specs = [tf.TensorSpec((None, *array.shape), array.dtype, name=key) for key, array in stage.inputs.items()]
        signatures[stage.name] = function.get_concrete_function(*specs)
    tf.saved_model.save(module, str(folder / "saved_model"), signatures)
    return {"batch": "any", "platforms": stages.PLATFORMS}


def load(folder: pathlib.Path, manifest: dict) -> dict:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder / "saved_model"))

    def runner(name):
        signature, keys = loaded.signatures[name], list(manifest["stages"][name]["inputs"])

        def run(*arrays):
            outputs = signature(**{key: tf.constant(array) for key, array in zip(keys, arrays, strict=True)})
            return {key: output.numpy() for key, output in outputs.items()}

        return run

    return {name: runner(name) for name in manifest["stages"]}
