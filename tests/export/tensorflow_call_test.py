"""Functions that TensorFlow calls: what they give, and StableHLO that TensorFlow reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from basisnet_jax.errors import UserError
from basisnet_jax.export import tensorflow_call
from basisnet_jax.export.tensorflow_call import called_by_tensorflow


def test_tensorflow_gets_what_jax_computes():
    """For any number of rows, with an argument that is not used and arguments in a list."""
    import tensorflow as tf

    def function(weights, unused, x):
        return {"sum": x + weights[1], "product": x @ weights[0]}

    random = np.random.default_rng(0)
    weights = [random.normal(size=shape).astype(np.float32) for shape in ((3, 2), (3,))]
    (rows,) = export.symbolic_shape("b")
    specs = [jax.ShapeDtypeStruct((rows, size), jnp.float32) for size in (5, 3)]
    called = tf.function(called_by_tensorflow(function, ("cpu", "tpu"), weights, *specs), autograph=False)
    called = called.get_concrete_function(weights, *(tf.TensorSpec((None, size), tf.float32) for size in (5, 3)))
    for rows in (1, 4):
        unused, x = (random.normal(size=(rows, size)).astype(np.float32) for size in (5, 3))
        found, expected = called(*jax.tree.map(tf.constant, (weights, unused, x))), function(weights, unused, x)
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)
    [node] = [node for node in called.graph.as_graph_def().node if node.op == "XlaCallModule"]
    assert f"StableHLO_v{tensorflow_call.STABLEHLO}".encode() in node.attr["module"].s[:100]


def test_what_an_older_stablehlo_does_not_have_is_refused(monkeypatch):
    monkeypatch.setattr(tensorflow_call, "STABLEHLO", "1.3.0")
    spec = jax.ShapeDtypeStruct((3,), jnp.float8_e8m0fnu)  # of StableHLO 1.8
    with pytest.raises(
        UserError, match=r"StableHLO later than 1\.3\.0, .* TensorFlow reads: failed to legalize"
    ) as refused:
        called_by_tensorflow(lambda x: x, ("cpu",), spec)
    assert "\n" not in str(refused.value)
