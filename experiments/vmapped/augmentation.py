"""The pipeline's augmentation as JAX code, so that it runs in the program that trains."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


def augmented(images: jax.Array, key: jax.Array, amounts) -> jax.Array:
    """uint8 [B, H, W, C] as `augment.affine` and `random_flip` change them; float32."""
    images = images.astype(jnp.float32)
    affine_key, flip_key = jax.random.split(key)
    if amounts.shift or amounts.rotation or amounts.zoom:
        draws = jax.random.uniform(affine_key, (len(images), 4), minval=-1.0, maxval=1.0)
        images = jax.vmap(partial(affine, amounts=amounts))(images, draws)
    if amounts.flip:
        flipped = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
        images = jnp.where(flipped, images[:, :, ::-1], images)
    return images


def affine(image: jax.Array, draw: jax.Array, amounts) -> jax.Array:
    """float [H, W, C] rotated, zoomed and shifted, bilinearly, by the fractions `draw` [4] of the greatest amounts."""
    height, width, _ = image.shape
    centre = jnp.array([(width - 1) / 2, (height - 1) / 2])
    angle, scale = draw[0] * jnp.deg2rad(amounts.rotation), 1 + draw[1] * amounts.zoom
    cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    to = jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)))  # x, y of every new pixel
    x, y = to - (centre + draw[2:] * amounts.shift * jnp.array([width, height]))[:, None, None]
    old = [centre[1] + cos * y - sin * x, centre[0] + cos * x + sin * y]
    return jax.vmap(partial(map_coordinates, coordinates=old, order=1), in_axes=-1, out_axes=-1)(image)
