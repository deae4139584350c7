"""Random changes of one training image, as stateless TensorFlow operations: the same seed, the same change."""

import math

import tensorflow as tf


def affine(image: tf.Tensor, seed: tf.Tensor, *, shift: float, rotation: float, zoom: float) -> tf.Tensor:
    """Shifts, rotates and zooms about the centre by random amounts; what comes from outside the image is 0.

    Args:
      image: float [H, W, C], H and W known when the graph is built.
      seed: integer [2].
      shift: greatest shift, as a fraction of the side, drawn for each axis.
      rotation: greatest rotation, in degrees, either way.
      zoom: greatest change of scale, as a fraction below 1: 0.1 draws a scale from 0.9 to 1.1.

    Returns:
      float [H, W, C], interpolated bilinearly. All amounts 0: the image itself.
    """
    if not (shift or rotation or zoom):
        return image
    height, width = image.shape[:2]
    draw = tf.random.stateless_uniform([4], seed, -1.0, 1.0)
    angle = draw[0] * (rotation * math.pi / 180)
    scale = 1 + draw[1] * zoom
    cos, sin = tf.cos(angle) / scale, tf.sin(angle) / scale
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    # The operation asks where each output pixel comes from: input = A (output - centre - shift) + centre.
    from_x, from_y = centre_x + draw[2] * shift * width, centre_y + draw[3] * shift * height
    transform = [
        cos,
        sin,
        centre_x - cos * from_x - sin * from_y,
        -sin,
        cos,
        centre_y + sin * from_x - cos * from_y,
        0.0,
        0.0,
    ]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=tf.stack(transform)[None],
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[0]


def random_flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors [H, W, C] left to right with probability one half; `seed` is integer [2]."""
    return tf.image.stateless_random_flip_left_right(image, seed)
