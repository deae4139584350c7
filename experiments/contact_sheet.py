"""Draws a contact sheet of the augmentations: a row for each operation, policy and mixing, a column for each setting.

    python experiments/contact_sheet.py --out=contact_sheet.png

Takes about half a minute on two cores. On the left, operations from magnitude 0 to 10; on the
right, policies, random erasing, mixup and CutMix from one seed to the next.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_image

from basisnet_jax.data import autoaugment, operations
from basisnet_jax.training import mixup

COLUMNS = 6
LABEL_WIDTH = 90
HEADING_HEIGHT = 20


def photograph(name: str, size: int) -> np.ndarray:
    """The middle of a sample image of scikit-learn, "china.jpg" or "flower.jpg", as uint8 [size, size, 3]."""
    image = Image.fromarray(load_sample_image(name))
    left = (image.width - image.height) // 2
    return np.asarray(image.crop((left, 0, left + image.height, image.height)).resize((size, size)))


def operation_rows(image: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Every operation at magnitudes 0, 2, ... 10, in the positive direction, Cutout at one place."""
    draw, scale = tf.constant([0.9, 0.3, 0.6]), autoaugment.IMAGENET_SCALE
    operate = tf.function(lambda index, m: autoaugment.apply_operation(image, index, m, draw, scale))
    magnitudes = tf.linspace(0.0, 10.0, COLUMNS)
    return {
        name: [operate(tf.constant(i), m).numpy() for m in magnitudes] for i, name in enumerate(autoaugment.OPERATIONS)
    }


def policy_rows(image: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Two rows of each policy and one of random erasing, another seed for each image."""
    functions = {
        "imagenet": lambda seed: autoaugment.apply(image, seed, "imagenet"),
        "cifar10": lambda seed: autoaugment.apply(image, seed, "cifar10"),
        "randaugment": lambda seed: autoaugment.apply(image, seed, "randaugment"),
        "random erasing": lambda seed: operations.random_erasing(image, seed, probability=1.0),
    }
    rows = {}
    for name, function in functions.items():
        ds = tf.data.Dataset.range(2 * COLUMNS).map(lambda i, function=function: function(tf.stack([i, i])))
        results = list(ds.as_numpy_iterator())
        rows |= {name: results[:COLUMNS], f"{name} ": results[COLUMNS:]}
    return rows


def mixing_rows(*images: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Mixup and CutMix at the papers' alphas, the first example of a batch of two, another key for each image."""
    batch, targets = jnp.asarray(np.stack(images), jnp.float32), jnp.eye(2)
    keys = jax.random.split(jax.random.key(0), COLUMNS)
    rows = {}
    for name, function, alpha in (
        ("mixup 0.2", mixup.mixup, 0.2),
        ("mixup 1", mixup.mixup, 1.0),
        ("cutmix 1", mixup.cutmix, 1.0),
    ):
        mixed, _ = jax.vmap(lambda key, function=function, alpha=alpha: function(key, batch, targets, alpha))(keys)
        rows[name] = list(np.asarray(mixed[:, 0], np.uint8))
    return rows


def sheet(title: str, rows: dict[str, list[np.ndarray]], headings: list[str]) -> Image.Image:
    """The rows below one another with their names to the left; every image is uint8 [size, size, 3]."""
    size = next(iter(rows.values()))[0].shape[0] + 2
    canvas = Image.new("RGB", (LABEL_WIDTH + COLUMNS * size, HEADING_HEIGHT + len(rows) * size), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((4, HEADING_HEIGHT // 2), title, fill="black", anchor="lm")
    for j, heading in enumerate(headings):
        draw.text((LABEL_WIDTH + j * size + size // 2, HEADING_HEIGHT // 2), heading, fill="black", anchor="mm")
    for i, (name, images) in enumerate(rows.items()):
        top = HEADING_HEIGHT + i * size
        draw.text((4, top + size // 2), name, fill="black", anchor="lm")
        for j, image in enumerate(images):
            canvas.paste(Image.fromarray(image), (LABEL_WIDTH + j * size, top))
    return canvas


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
    canvas.paste(left, (0, 0))
    canvas.paste(right, (left.width, 0))
    return canvas


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="contact_sheet.png", help="the PNG to write")
    parser.add_argument("--size", type=int, default=112, help="pixels of each image's side")
    flags = parser.parse_args()
    china, flower = photograph("china.jpg", flags.size), photograph("flower.jpg", flags.size)
    operations = sheet("magnitude", operation_rows(china), [f"{m:g}" for m in np.linspace(0, 10, COLUMNS)])
    rows = policy_rows(china) | mixing_rows(china, flower)
    beside(operations, sheet("seed or key", rows, [str(i) for i in range(COLUMNS)])).save(flags.out)


if __name__ == "__main__":
    main()
