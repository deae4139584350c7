"""What every model sees of an image, in training, evaluation and export alike."""

import jax
import jax.numpy as jnp


def normalize(images: jax.Array, config) -> jax.Array:
    """Images [B, H, W, C] in 0..255 to float32, less the mean, over the standard deviation of the config."""
    return (images.astype(jnp.float32) / 255.0 - jnp.asarray(config.mean)) / jnp.asarray(config.stddev)


def image_shape(config) -> tuple[int, int, int]:
    return config.image_size, config.image_size, config.channels
