"""From an encoded image to its pixels: which part of it is decoded, and how that is resized."""

import tensorflow as tf

from basisnet_jax.errors import UserError
from basisnet_jax.preprocess import Preprocess

RESIZE_METHODS = {"bilinear": "triangle", "bicubic": "keyscubic"}  # as TensorFlow's ScaleAndTranslate calls them


def centre(seen: Preprocess, feature, encoded):
    """What evaluation sees of an encoded image: uint8 [image_size, image_size, channels]."""
    return to_uint8(resize(seen, decode_centre(feature, encoded, seen.eval_crop)))


def decode_centre(feature, encoded, fraction):
    """The square at the centre, its side this fraction of the image's shorter side: uint8 [h, h, channels]."""
    image = feature.decode_example(encoded)
    size = tf.shape(image)[:2]
    side = tf.cast(tf.round(fraction * tf.cast(tf.reduce_min(size), tf.float32)), tf.int32)
    top, left = tf.unstack((size - side) // 2)
    return tf.ensure_shape(tf.slice(image, [top, left, 0], [side, side, -1]), [None, None, image.shape[-1]])


def decode_distorted_crop(feature, encoded, least_area, seed):
    """A box of random place, area (`least_area`..1 of the image) and aspect (3/4..4/3): uint8 [h, w, channels].

    Of a JPEG only the blocks of the box are decoded.
    """

    def crop(size, decode_box):
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            size,
            tf.zeros([1, 0, 4]),
            seed,
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(least_area, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        return decode_box(begin, extent)

    def of_jpeg():
        def decode_box(begin, extent):
            window = tf.concat([begin[:2], extent[:2]], axis=0)
            return tf.image.decode_and_crop_jpeg(encoded, window, channels=feature.shape[-1])

        return crop(tf.image.extract_jpeg_shape(encoded), decode_box)

    def of_any():
        image = feature.decode_example(encoded)
        return crop(tf.shape(image), lambda begin, extent: tf.slice(image, begin, extent))

    image = tf.cond(tf.io.is_jpeg(encoded), of_jpeg, of_any)
    return tf.ensure_shape(image, [None, None, feature.shape[-1]])


def to_uint8(image):
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


def resize(seen: Preprocess, image):
    """uint8 [h, w, 1 or 3] -> float32 [image_size, image_size, channels] in 0..255."""
    check_resize(seen.resize)
    # Before it is resized, an image that is grey all along turns into exactly the one channel that it was made of.
    if image.shape[-1] == 3 and seen.channels == 1:
        image = tf.image.rgb_to_grayscale(image)
    image = _resize_sides(image, seen.image_size, RESIZE_METHODS[seen.resize])
    return tf.tile(image, [1, 1, 3]) if image.shape[-1] == 1 and seen.channels == 3 else image


def _resize_sides(image, size, kernel):
    """`tf.image.resize(image, [size, size], antialias=True)`, quicker: float32 [size, size, c].

    One side at a time, all numbers of the other as channels: TensorFlow's operation is slow for 3 of them. From 300 or
    600 pixels to 224 it takes 0.4 of the time; from 1500 and more, which take longer to decode, no less.
    """

    def resize(rows):  # [n, m] -> float32 [size, m]
        number, length = tf.unstack(tf.shape(rows))
        resized = tf.raw_ops.ScaleAndTranslate(
            images=tf.reshape(rows, [1, 1, number, length]),
            size=[1, size],
            scale=tf.stack([1.0, tf.cast(size, tf.float32) / tf.cast(number, tf.float32)]),
            translation=[0.0, 0.0],
            kernel_type=kernel,
            antialias=True,
        )
        return tf.reshape(resized, [size, length])

    (height, width, _), channels = tf.unstack(tf.shape(image)), image.shape[-1]
    image_rows = resize(tf.reshape(image, [height, width * channels]))
    columns = resize(tf.reshape(tf.transpose(image_rows), [width, channels * size]))
    return tf.reshape(tf.transpose(tf.reshape(columns, [size * channels, size])), [size, size, channels])


def check_resize(method: str):
    if method not in RESIZE_METHODS:
        raise UserError(f"config.resize={method!r}, expected one of {', '.join(RESIZE_METHODS)}")
