"""A JAX function as one that TensorFlow calls: what SavedModel and TensorFlow Lite are written from.

TensorFlow reads StableHLO up to the version that it was built with. JAX is released more often, writes a later one, and
`jax2tf` leaves no choice of it. So this does what `jax2tf` does, with StableHLO of the version that TensorFlow reads.
"""

from collections.abc import Callable, Sequence

import jax
from jax import export
from jax.extend import mlir

from basisnet_jax.errors import UserError

STABLEHLO = "1.13.7"  # the latest that TensorFlow 2.21 reads


def called_by_tensorflow(
    function: Callable, platforms: Sequence[str], *specs: jax.ShapeDtypeStruct | list[jax.ShapeDtypeStruct]
) -> Callable:
    """`function` for tensors of these shapes, which may be symbolic, on these platforms of `jax.export`.

    Raises:
      UserError: the function needs what StableHLO of that version does not have.
    """
    import tensorflow as tf
    from tensorflow.compiler.tf2xla.python import xla  # `tf.raw_ops` does not have this operation

    exported = export.export(jax.jit(function), platforms=platforms)(*specs)
    try:
        module = mlir.serialize_portable_artifact(exported.mlir_module(), STABLEHLO)
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).partition("error: ")[2].split())[:100]
        raise UserError(
            f"the model as jax {jax.__version__} writes it needs StableHLO later than {STABLEHLO}, the latest that "
            f"TensorFlow reads: {reason}"
        ) from error
    outputs = exported.out_avals

    def call(*args):
        tensors = [tf.convert_to_tensor(leaf) for leaf in jax.tree.leaves(args)]
        results = xla.call_module(
            [tensors[i] for i in exported.module_kept_var_idx],
            version=exported.calling_convention_version,
            module=module,
            Tout=[tf.as_dtype(output.dtype) for output in outputs],
            Sout=[[size if isinstance(size, int) else None for size in output.shape] for output in outputs],
            platforms=[name.upper() for name in platforms],
        )
        return exported.out_tree.unflatten(results)

    return call
