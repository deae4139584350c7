"""AutoAugment and RandAugment of one image, as stateless TensorFlow operations.

AutoAugment is Cubuk et al. 2019, RandAugment Cubuk et al. 2020. "The published code" is tensorflow/tpu
`models/official/efficientnet/autoaugment.py` for ImageNet and RandAugment, and tensorflow/models `research/autoaugment`
for CIFAR-10.

All images are uint8 [H, W, 1 or 3] with H and W known when the graph is built. Randomness is a function of the seed.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from basisnet_jax.data.operations import (
    auto_contrast,
    brightness,
    color,
    contrast,
    cutout,
    equalize,
    invert,
    posterize,
    rotate,
    sharpness,
    shear,
    solarize,
    solarize_add,
    translate,
)
from basisnet_jax.errors import UserError


class Step(NamedTuple):
    """One operation of a sub-policy: its name in `OPERATIONS`, how often it is applied, and its magnitude, 0..10."""

    name: str
    probability: float
    magnitude: float


@dataclasses.dataclass(frozen=True)
class Scale:
    """Where the magnitudes of the published codes differ: amounts at magnitude 10, for images of `side` pixels.

    Images of another size are moved and cut in proportion. `falling`: whether Posterize's bits and Solarize's
    threshold fall with the magnitude, so that a greater one changes more, or rise with it.
    """

    side: int
    translate: int
    cutout: int  # half the side of the square
    falling: bool


# The published ImageNet policy translates by up to 250 pixels, which at magnitude 9 empties an image of 224. The paper
# says 150 of 331. Both are replaced by the same code's setting for RandAugment, which as a fraction is the paper's.
IMAGENET_SCALE = Scale(side=224, translate=100, cutout=40, falling=False)
CIFAR10_SCALE = Scale(side=32, translate=10, cutout=10, falling=True)

OPERATIONS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast"),
    *("Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout"),
)

# `policy_v0` of the published code. A sub-policy is drawn for each image, and its two steps follow one another.
IMAGENET = (
    (Step("Equalize", 0.8, 1), Step("ShearY", 0.8, 4)),
    (Step("Color", 0.4, 9), Step("Equalize", 0.6, 3)),
    (Step("Color", 0.4, 1), Step("Rotate", 0.6, 8)),
    (Step("Solarize", 0.8, 3), Step("Equalize", 0.4, 7)),
    (Step("Solarize", 0.4, 2), Step("Solarize", 0.6, 2)),
    (Step("Color", 0.2, 0), Step("Equalize", 0.8, 8)),
    (Step("Equalize", 0.4, 8), Step("SolarizeAdd", 0.8, 3)),
    (Step("ShearX", 0.2, 9), Step("Rotate", 0.6, 8)),
    (Step("Color", 0.6, 1), Step("Equalize", 1.0, 2)),
    (Step("Invert", 0.4, 9), Step("Rotate", 0.6, 0)),
    (Step("Equalize", 1.0, 9), Step("ShearY", 0.6, 3)),
    (Step("Color", 0.4, 7), Step("Equalize", 0.6, 0)),
    (Step("Posterize", 0.4, 6), Step("AutoContrast", 0.4, 7)),
    (Step("Solarize", 0.6, 8), Step("Color", 0.6, 9)),
    (Step("Solarize", 0.2, 4), Step("Rotate", 0.8, 9)),
    (Step("Rotate", 1.0, 7), Step("TranslateY", 0.8, 9)),
    (Step("ShearX", 0.0, 0), Step("Solarize", 0.8, 4)),
    (Step("ShearY", 0.8, 0), Step("Color", 0.6, 4)),
    (Step("Color", 1.0, 0), Step("Rotate", 0.6, 2)),
    (Step("Equalize", 0.8, 4), Step("Equalize", 0.0, 8)),
    (Step("Equalize", 1.0, 4), Step("AutoContrast", 0.6, 2)),
    (Step("ShearY", 0.4, 7), Step("SolarizeAdd", 0.6, 7)),
    (Step("Posterize", 0.8, 2), Step("Solarize", 0.6, 10)),
    (Step("Solarize", 0.6, 8), Step("Equalize", 0.6, 1)),
    (Step("Color", 0.8, 6), Step("Rotate", 0.4, 5)),
)

# The paper's table for CIFAR-10; the published code holds these and 70 more of the search's results.
CIFAR10 = (
    (Step("Invert", 0.1, 7), Step("Contrast", 0.2, 6)),
    (Step("Rotate", 0.7, 2), Step("TranslateX", 0.3, 9)),
    (Step("Sharpness", 0.8, 1), Step("Sharpness", 0.9, 3)),
    (Step("ShearY", 0.5, 8), Step("TranslateY", 0.7, 9)),
    (Step("AutoContrast", 0.5, 8), Step("Equalize", 0.9, 2)),
    (Step("ShearY", 0.2, 7), Step("Posterize", 0.3, 7)),
    (Step("Color", 0.4, 3), Step("Brightness", 0.6, 7)),
    (Step("Sharpness", 0.3, 9), Step("Brightness", 0.7, 9)),
    (Step("Equalize", 0.6, 5), Step("Equalize", 0.5, 1)),
    (Step("Contrast", 0.6, 7), Step("Sharpness", 0.6, 5)),
    (Step("Color", 0.7, 7), Step("TranslateX", 0.5, 8)),
    (Step("Equalize", 0.3, 7), Step("AutoContrast", 0.4, 8)),
    (Step("TranslateY", 0.4, 3), Step("Sharpness", 0.2, 6)),
    (Step("Brightness", 0.9, 6), Step("Color", 0.2, 8)),
    (Step("Solarize", 0.5, 2), Step("Invert", 0.0, 3)),
    (Step("Equalize", 0.2, 0), Step("AutoContrast", 0.6, 0)),
    (Step("Equalize", 0.2, 8), Step("Equalize", 0.6, 4)),
    (Step("Color", 0.9, 9), Step("Equalize", 0.6, 6)),
    (Step("AutoContrast", 0.8, 4), Step("Solarize", 0.2, 8)),
    (Step("Brightness", 0.1, 3), Step("Color", 0.7, 0)),
    (Step("Solarize", 0.4, 5), Step("AutoContrast", 0.9, 3)),
    (Step("TranslateY", 0.9, 9), Step("TranslateY", 0.7, 9)),
    (Step("AutoContrast", 0.9, 2), Step("Solarize", 0.8, 3)),
    (Step("Equalize", 0.8, 8), Step("Invert", 0.1, 3)),
    (Step("TranslateY", 0.7, 9), Step("AutoContrast", 0.9, 1)),
)

_POLICIES = {"imagenet": (IMAGENET, IMAGENET_SCALE), "cifar10": (CIFAR10, CIFAR10_SCALE)}


def apply(
    image: tf.Tensor, seed: tf.Tensor, policy: str = "imagenet", *, layers: int = 2, magnitude: float = 10
) -> tf.Tensor:
    """A random change of `image` by a policy.

    Args:
      image: uint8 [H, W, 1 or 3].
      seed: integer [2].
      policy: "imagenet" or "cifar10", a table of AutoAugment; or "randaugment", `layers` operations drawn evenly from
        all 16, each applied at `magnitude`.
      layers: of RandAugment only, N in the paper.
      magnitude: of RandAugment only, M in the paper, but in the published code's unit: 10 is the table in
        `apply_operation`, and greater ones go on beyond it.

    Returns:
      uint8 [H, W, 1 or 3].

    Raises:
      UserError: there is no such policy.
    """
    if policy == "randaugment":
        for draw in tf.unstack(tf.random.stateless_uniform([layers, 4], seed)):
            index = tf.cast(draw[0] * len(OPERATIONS), tf.int32)
            image = apply_operation(image, index, magnitude, draw[1:], IMAGENET_SCALE)
        return image
    if policy not in _POLICIES:
        raise UserError(f"policy is {policy!r}, but must be 'randaugment' or one of {', '.join(map(repr, _POLICIES))}")
    table, scale = _POLICIES[policy]
    draws = tf.random.stateless_uniform([1 + 2 * 4], seed)
    row = tf.cast(draws[0] * len(table), tf.int32)
    indices = tf.constant([[OPERATIONS.index(step.name) for step in steps] for steps in table])[row]
    probabilities = tf.constant([[step.probability for step in steps] for steps in table], tf.float32)[row]
    magnitudes = tf.constant([[step.magnitude for step in steps] for steps in table], tf.float32)[row]
    for i, draw in enumerate(tf.unstack(tf.reshape(draws[1:], [2, 4]))):
        # The index after the last operation leaves the image alone.
        index = tf.where(draw[0] < probabilities[i], indices[i], len(OPERATIONS))
        image = apply_operation(image, index, magnitudes[i], draw[1:], scale)
    return image


def apply_operation(image: tf.Tensor, index: tf.Tensor, magnitude: tf.Tensor, draw: tf.Tensor, scale: Scale):
    """Operation number `index` of `OPERATIONS`, and no other, at `magnitude`; past the last: the image itself.

    `draw`, float [3] in [0, 1), gives the sign of what can go both ways and the centre (y, x) of Cutout. At magnitude
    m, in tenths of what the lambdas below show: up to 30 degrees; shears of 0.3 pixels a pixel; 4 bits; 256 and 110
    grey levels; factors from 0.1 to 1.9, of which 1 changes nothing; pixels as `scale` has them.
    """
    height, width = image.shape[:2]
    tenths = tf.cast(magnitude, tf.float32)
    sign = tf.where(draw[0] < 0.5, -1.0, 1.0)

    def amount(at_ten):
        return tenths * at_ten / 10  # In this order whole numbers stay whole, and truncation is safe.

    def pixels(at_ten, side):
        return amount(at_ten * side) / scale.side

    def level(at_ten):
        rising = tf.cast(amount(at_ten), tf.int32)
        return at_ten - rising if scale.falling else rising

    operations: dict[str, Callable[[], tf.Tensor]] = {
        "AutoContrast": lambda: auto_contrast(image),
        "Equalize": lambda: equalize(image),
        "Invert": lambda: invert(image),
        "Rotate": lambda: rotate(image, sign * amount(30)),
        "Posterize": lambda: posterize(image, level(4)),
        "Solarize": lambda: solarize(image, level(256)),
        "SolarizeAdd": lambda: solarize_add(image, tf.cast(amount(110), tf.int32)),
        "Color": lambda: color(image, amount(1.8) + 0.1),
        "Contrast": lambda: contrast(image, amount(1.8) + 0.1),
        "Brightness": lambda: brightness(image, amount(1.8) + 0.1),
        "Sharpness": lambda: sharpness(image, amount(1.8) + 0.1),
        "ShearX": lambda: shear(image, x=sign * amount(0.3)),
        "ShearY": lambda: shear(image, y=sign * amount(0.3)),
        "TranslateX": lambda: translate(image, x=sign * pixels(scale.translate, width)),
        "TranslateY": lambda: translate(image, y=sign * pixels(scale.translate, height)),
        "Cutout": lambda: cutout(image, draw[1:], tf.cast(pixels(scale.cutout, min(height, width)), tf.int32)),
    }
    return tf.switch_case(index, [*(operations[name] for name in OPERATIONS), lambda: tf.identity(image)])
