"""The operations of AutoAugment on one image, and random erasing (Zhong et al. 2020), in TensorFlow.

As in the code of the papers that autoaugment.py names, geometric operations take the nearest pixel and what comes from
outside the image is grey, 128. Operations on grey levels are those of Pillow, to the level. All images are uint8
[H, W, 1 or 3] with H and W known when the graph is built.

TensorFlow takes its time on CPU for three things that are avoided here: choice by pixel (`tf.where`, up to ten times a
bitwise operation), broadcasting over a last axis of three channels (three to four times broadcasting over whole rows),
and gathering single elements (`tf.gather_nd` takes two thirds of `tf.gather`). benchmarks/README.md has the figures.
"""

import math

import tensorflow as tf

_FILL = 128


def auto_contrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to 0..255; a channel of one level stays."""
    low, high = (tf.cast(end(image, [0, 1]), tf.float64) for end in (tf.reduce_min, tf.reduce_max))
    # In float64 as Pillow: float32 can be one level off.
    scale = tf.where(high > low, 255 / tf.maximum(high - low, 1), 1)
    offset = tf.where(high > low, low * scale, 0)
    levels = tf.cast(_rows(image), tf.float64) * _row_of(scale, image) - _row_of(offset, image)
    return tf.reshape(_to_levels(levels), image.shape)


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Makes the histogram of each channel as flat as a map of levels can; Pillow's arithmetic in whole numbers."""
    channels = image.shape[-1]
    bins = tf.reshape(tf.cast(_rows(image), tf.int32) + _row_of(256 * tf.range(channels), image), [-1])
    counts = tf.reshape(tf.math.bincount(bins, minlength=256 * channels), [channels, 256])
    highest = tf.cast(tf.reduce_max(image, [0, 1]), tf.int32)[:, None]
    step = (tf.reduce_sum(counts, 1, keepdims=True) - tf.gather(counts, highest, batch_dims=1)) // 255
    levels = (tf.cumsum(counts, 1, exclusive=True) + step // 2) // tf.maximum(step, 1)
    levels = tf.where(step > 0, tf.minimum(levels, 255), tf.range(256))
    # Of float32 the quickest.
    levels = tf.gather_nd(tf.reshape(tf.cast(levels, tf.float32), [-1]), bins[:, None])
    return tf.reshape(tf.cast(levels, tf.uint8), image.shape)


def invert(image: tf.Tensor) -> tf.Tensor:
    """Level v becomes 255 - v."""
    return 255 - image


def posterize(image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keeps the `bits` highest bits, at least 1 (as the published code, where TensorFlow's shifts stop at 7)."""
    dropped = 8 - tf.clip_by_value(bits, 1, 8)
    return tf.bitwise.bitwise_and(image, tf.cast(256 - tf.bitwise.left_shift(1, dropped), tf.uint8))


def solarize(image: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Inverts the levels from `threshold` up: 0 inverts all, 256 none."""
    return tf.bitwise.bitwise_xor(image, _mask(tf.cast(image, tf.int32) >= threshold))


def solarize_add(image: tf.Tensor, addition: tf.Tensor, threshold: int = 128) -> tf.Tensor:
    """Adds to the levels below `threshold`, up to 255."""
    added = tf.minimum(255 - image, tf.cast(tf.minimum(addition, 255), tf.uint8))
    return image + tf.bitwise.bitwise_and(_mask(image < threshold), added)


def color(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Saturation: factor 0 is grey, 1 the image, beyond 1 exaggerates. Images of one channel stay."""
    return image if image.shape[-1] == 1 else _blend(_luma(image), image, factor)


def contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Factor 0 is the mean grey of the image, 1 the image. (In the published code it is a number near 255.)"""
    mean = tf.reduce_mean(tf.cast(_luma(image)[..., 0], tf.float64))
    return _blend(tf.floor(mean + 0.5), image, factor)


def brightness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Factor 0 is black, 1 the image."""
    return _blend(0, image, factor)


def sharpness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Factor 0 is smoothed by a 3x3 kernel of ones with 5 in its middle, 1 the image; the outermost pixels stay."""
    levels = tf.cast(image, tf.float32)
    rows = levels[:-2] + levels[1:-1] + levels[2:]
    smooth = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * levels[1:-1, 1:-1]
    inside = _blend(tf.floor(smooth / 13 + 0.5), image[1:-1, 1:-1], factor)
    middle = tf.concat([image[1:-1, :1], inside, image[1:-1, -1:]], 1)
    return tf.concat([image[:1], middle, image[-1:]], 0)


def rotate(image: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
    """Rotates about the centre, counter-clockwise."""
    height, width = image.shape[:2]
    cos, sin = tf.cos(degrees * (math.pi / 180)), tf.sin(degrees * (math.pi / 180))
    x, y = (width - 1) / 2, (height - 1) / 2
    return _transform(image, [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y])


def shear(image: tf.Tensor, x: tf.Tensor = 0.0, y: tf.Tensor = 0.0) -> tf.Tensor:
    """Output pixel (x', y') is input pixel (x' + x y', y' + y x'): the top row, or the left column, stays."""
    return _transform(image, [1.0, x, 0.0, y, 1.0, 0.0])


def translate(image: tf.Tensor, x: tf.Tensor = 0.0, y: tf.Tensor = 0.0) -> tf.Tensor:
    """Moves the image by x pixels to the left and y pixels up."""
    return _transform(image, [1.0, 0.0, x, 0.0, 1.0, y])


def cutout(image: tf.Tensor, centre: tf.Tensor, half: tf.Tensor) -> tf.Tensor:
    """Greys the square of side 2 `half` about `centre`, (y, x) in [0, 1); what of it is inside the image."""
    height, width = image.shape[:2]
    y, x = tf.cast(centre[0] * height, tf.int32), tf.cast(centre[1] * width, tf.int32)
    return _with_box(image, tf.constant(_FILL, tf.uint8), y - half, x - half, 2 * half, 2 * half)


def random_erasing(
    image: tf.Tensor,
    seed: tf.Tensor,
    *,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: float = 0.3,
    fill: int | None = None,
    attempts: int = 100,
) -> tf.Tensor:
    """Erases a random rectangle (Zhong et al. 2020, algorithm 1; the defaults are theirs).

    Args:
      image: uint8 [H, W, 1 or 3].
      seed: integer [2].
      probability: that anything is erased.
      area: least and greatest share of the image, before sides are rounded to pixels.
      aspect: the ratio of height to width is drawn evenly from `aspect` to 1 / `aspect`.
      fill: the level put there; None is the paper's choice, noise in 0..255, drawn for each pixel and channel.
      attempts: draws, of which the first rectangle smaller than the image both ways is taken; if none is, none.

    Returns:
      uint8 [H, W, 1 or 3].
    """
    height, width, channels = image.shape
    seeds = tf.unstack(tf.random.split(seed, 3))

    def erase():
        draws = tf.random.stateless_uniform([2, attempts], seeds[1])
        areas = (area[0] + draws[0] * (area[1] - area[0])) * height * width
        ratios = aspect + draws[1] * (1 / aspect - aspect)
        sides = tf.cast(tf.round(tf.stack([tf.sqrt(areas * ratios), tf.sqrt(areas / ratios)], 1)), tf.int32)
        fits = tf.reduce_all(sides < [height, width], 1)
        box_height, box_width = tf.unstack(sides[tf.argmax(fits)] * tf.cast(tf.reduce_any(fits), tf.int32))
        place = tf.random.stateless_uniform([2], seeds[2])
        top = tf.cast(place[0] * tf.cast(height - box_height + 1, tf.float32), tf.int32)
        left = tf.cast(place[1] * tf.cast(width - box_width + 1, tf.float32), tf.int32)
        if fill is None:
            # Four levels a number: drawing each from 0..255 takes four times as long.
            size = height * width * channels
            words = tf.random.stateless_uniform([-(-size // 4)], seeds[0], None, None, tf.int32)
            values = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:size], image.shape)
        else:
            values = tf.constant(fill, tf.uint8)
        return _with_box(image, values, top, left, box_height, box_width)

    return tf.cond(tf.random.stateless_uniform([], seed) < probability, erase, lambda: tf.identity(image))


def _luma(image):
    """Grey levels by ITU-R 601-2 in Pillow's 16-bit arithmetic, in all channels: float32 [H, W, 1 or 3]."""
    levels = tf.cast(image, tf.float32)
    if image.shape[-1] == 1:
        return levels
    # Whole numbers below 2^24 throughout, so that float32 is exact in any order.
    weights = tf.constant([[19595.0] * 3, [38470.0] * 3, [7471.0] * 3])
    sums = tf.reshape(levels, [-1, 3]) @ weights
    return tf.reshape(tf.floor((sums + 32768) / 65536), image.shape)


def _blend(degenerate, image, factor):
    """`degenerate` at factor 0, `image` at 1, and on beyond it; truncated, as in Pillow and the published code."""
    degenerate = tf.cast(degenerate, tf.float32)
    return _to_levels(degenerate + factor * (tf.cast(image, tf.float32) - degenerate))


def _to_levels(values):
    return tf.cast(tf.clip_by_value(values, 0, 255), tf.uint8)


def _transform(image, coefficients):
    """Output pixel (x, y) is input pixel (a x + b y + c, d x + e y + f), the nearest, for coefficients a to f."""
    height, width, channels = image.shape
    a, b, c, d, e, f = coefficients
    x, y = tf.range(width, dtype=tf.float32), tf.range(height, dtype=tf.float32)[:, None]
    column = tf.cast(tf.floor(a * x + b * y + c + 0.5), tf.int32)
    row = tf.cast(tf.floor(d * x + e * y + f + 0.5), tf.int32)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    # ImageProjectiveTransformV3 takes twice as long as looking up pixels in a list, grey the last of them.
    grey = height * width
    places = grey + tf.cast(inside, tf.int32) * (row * width + column - grey)
    pixels = tf.concat([tf.reshape(image, [-1, channels]), tf.fill([1, channels], tf.constant(_FILL, tf.uint8))], 0)
    return tf.reshape(tf.gather_nd(pixels, tf.reshape(places, [-1, 1])), image.shape)


def _with_box(image, values, top, left, height, width):
    """The image with `values`, uint8, inside the rectangle."""
    y, x = tf.range(image.shape[0]), tf.range(image.shape[1])
    rows, columns = _mask((y >= top) & (y < top + height)), _mask((x >= left) & (x < left + width))
    columns = tf.repeat(columns, image.shape[-1])
    inside = tf.reshape(tf.bitwise.bitwise_and(rows[:, None], columns), image.shape)
    # Exclusive or, twice, gives back what was there.
    return tf.bitwise.bitwise_xor(image, tf.bitwise.bitwise_and(inside, tf.bitwise.bitwise_xor(image, values)))


def _mask(chosen):
    """uint8: all bits of what is chosen, else none."""
    return 255 * tf.cast(chosen, tf.uint8)


def _rows(image):
    """[H, W, C] -> [H, W * C]."""
    return tf.reshape(image, [image.shape[0], -1])


def _row_of(values, image):
    """A value for each channel [C], repeated along a row: [W * C]."""
    return tf.tile(values, [image.shape[1]])
