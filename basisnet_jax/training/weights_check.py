"""Whether imported weights compute with a config's padding, epsilon and normalization what they were trained to.

Batch statistics remember the activations of training. Photographs have nearly the same ones, if the network computes as
it did then. With EfficientNet-Lite0's published weights the distance below is 0.008 with TensorFlow's settings, 0.011
with PyTorch's padding and epsilon, and 0.04 with PyTorch's normalization of the images as well. For weights that
were trained on other images than photographs the distance tells nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from basisnet_jax import models, preprocess
from basisnet_jax.classifier import Classifier

CROPS = 8
CLEARLY = 1.2  # times as far; for Lite0, in 10 draws of crops, the wrong padding alone was 1.27 to 1.36 times as far


def photographs() -> list[np.ndarray]:
    """The two that come with scikit-learn, uint8 [427, 640, 3]: a palace and a flower."""
    from sklearn import datasets

    return datasets.load_sample_images().images


def logits(network: Classifier, params: dict, batch_stats: dict) -> np.ndarray:
    """What the network, its arrays given, says of the two photographs: [2, num_classes]."""
    functions, prepare = models.abstract(network), network.preprocess

    @jax.jit
    def evaluate(params, batch_stats, images):
        return functions.evaluate(params, batch_stats, prepare.normalize(images)).logits

    return np.asarray(evaluate(params, batch_stats, jnp.stack([*map(prepare, photographs())])))


def distance(network: Classifier, params: dict, batch_stats: dict) -> float:
    """How far the statistics of photographs are from `batch_stats`, at the input of each batch norm.

    It is the Kullback-Leibler divergence between normal distributions: the median over the channels, the mean over the
    layers. Not finite where an activation is not.
    """
    network = nnx.clone(network)
    for _, module in nnx.iter_modules(network):
        if isinstance(module, nnx.BatchNorm):
            epsilon, module.momentum = module.epsilon, 0.0  # the new statistics are then those of this batch
        elif isinstance(module, nnx.Dropout):
            module.rate = 0.0
    functions, prepare = models.abstract(network), network.preprocess

    @jax.jit
    def statistics(params, batch_stats, images):
        return functions.train(params, batch_stats, prepare.normalize(images), jax.random.key(0))[1]

    new = statistics(params, batch_stats, jnp.asarray(_crops(prepare)))
    is_layer = lambda tree: "var" in tree  # noqa: E731
    divergence = lambda there, here: _divergence(there, here, epsilon)  # noqa: E731
    return float(np.mean(jax.tree.leaves(jax.tree.map(divergence, batch_stats, new, is_leaf=is_layer))))


def nearest(distances: dict[str, float]) -> tuple[str, bool]:
    """The origin whose settings are nearest, and whether the others are so much further that it can be told."""
    first, *others = sorted(distances, key=distances.get)
    return first, all(distances[other] >= CLEARLY * distances[first] for other in others)


def text(distances: dict[str, float]) -> str:
    return ", ".join(f"{origin} {distance:.4f}" for origin, distance in distances.items())


def _crops(prepare: preprocess.Preprocess) -> np.ndarray:
    """Squares of the photographs, uint8 [CROPS, image_size, image_size, channels]; always the same ones."""
    random, images, squares = np.random.default_rng(0), photographs(), []
    for i in range(CROPS):
        image = images[i % len(images)]
        height, width, _ = image.shape
        side = int(min(height, width) * random.uniform(0.3, 1) ** 0.5)
        top, left = random.integers(height - side + 1), random.integers(width - side + 1)
        square = image[top : top + side, left : left + side]
        squares.append(prepare(square[:, ::-1] if random.random() < 0.5 else square))
    return np.stack(squares)


def _divergence(stored: dict, new: dict, epsilon: float) -> float:
    there, here = np.asarray(stored["var"], float) + epsilon, np.asarray(new["var"], float) + epsilon
    shift = np.asarray(new["mean"], float) - np.asarray(stored["mean"], float)
    return float(np.median(0.5 * (np.log(there / here) + (here + shift**2) / there - 1)))
