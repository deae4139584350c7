"""Initial weights, drawn on the host.

`jax.random.normal` is compiled anew for every shape: 40 s on 2 CPU cores for a network's hundred kernels, where NumPy
takes a second. Under a trace there is no host to draw on; there the draws are JAX's, and other numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np


def standard_normal(key: jax.Array, shape: tuple[int, ...]) -> np.ndarray | jax.Array:
    """Independent standard normal float32 numbers, a function of the key: a NumPy array unless traced."""
    if isinstance(key, jax.core.Tracer):
        return jax.random.normal(key, shape)
    words = np.asarray(jax.random.key_data(key))
    return np.random.Generator(np.random.Philox(words)).standard_normal(shape, np.float32)


def normal(stddev: float):
    """An initialiser, `(key, shape, dtype) -> array`, of normal numbers around 0."""

    def init(key, shape, dtype=jnp.float32):
        return jnp.asarray(stddev * standard_normal(key, shape), dtype)

    return init


def on_host(array: jax.Array) -> np.ndarray | jax.Array:
    """The array as NumPy's, unless it is traced: what is computed from it is then not compiled."""
    return array if isinstance(array, jax.core.Tracer) else np.asarray(array)
