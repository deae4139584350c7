"""Predictions for arrays of images, by a model or an export. The specialist runs only where the preview is not sure."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from basisnet_jax import early_exit, madds
from basisnet_jax.basisnet import BasisNet, Outputs
from basisnet_jax.early_exit import Answers, Rule
from basisnet_jax.preprocess import Preprocess


class Prediction(NamedTuple):
    """What a model makes of n images.

    Example:
      >>> labels, probabilities, stage, madds, names = model.predict(images)  # doctest: +SKIP
      >>> labels[stage == "preview"]  # of the images that stopped  # doctest: +SKIP
    """

    labels: np.ndarray  # [n], int
    probabilities: np.ndarray  # [n, classes], float32, of the answer that stands
    stage: np.ndarray  # [n], "preview" where inference stopped there, else "specialist"; without a preview "network"
    madds: np.ndarray  # [n], multiply-adds spent
    names: list[str]  # [n], of the labels


def predict(
    model: nnx.Module,
    images: np.ndarray | Sequence[np.ndarray],
    *,
    threshold: float | None = None,
    batch_size: int = 64,
) -> Prediction:
    """Classifies images, `batch_size` at a time.

    Args:
      model: any network of [n, ...] to logits [n, classes], or a `BasisNet`. It is put into evaluation mode.
      images: uint8 [n, H, W, C] or a list of uint8 [H, W, C] of any sizes, which the model's `preprocess` prepares:
        cropped, resized, normalized. Arrays of floats are given to the model as they are.
      threshold: at which the preview's confidence ends inference. None: that of the model's `rule`, as calibrated or
        evaluated before; where it has none no image stops.
      batch_size: of the programs that are compiled; a smaller batch is filled up.

    Raises:
      ValueError: there is no image, or one of another kind.

    Example:
      >>> network = nnx.Sequential(lambda x: x.mean(axis=(1, 2)), nnx.Linear(3, 10, rngs=nnx.Rngs(0)))
      >>> found = predict(network, np.zeros((2, 8, 8, 3), np.float32))
      >>> found.probabilities.shape, found.stage.tolist(), found.madds.tolist()
      ((2, 10), ['network', 'network'], [30, 30])
    """
    model.eval()
    seen = getattr(model, "preprocess", None)
    inputs, normalize = prepared(images, seen)
    rule = getattr(model, "rule", None) or Rule()
    if threshold is not None:
        rule = rule._replace(threshold=threshold)
    batch_size = min(batch_size, len(inputs))
    batches = (inputs[i : i + batch_size] for i in range(0, len(inputs), batch_size))
    found = [*answers(model, batches, rule, batch_size, normalize)]
    logits = np.concatenate([batch.logits for batch in found])
    stopped = np.concatenate([batch.stopped for batch in found])
    return prediction(logits, stopped, costs_of(model, inputs.shape[1:]), getattr(model, "names", None))


def answers(
    model: nnx.Module, batches: Iterable[np.ndarray], rule: Rule, batch_size: int, normalize: Callable
) -> Iterator[Answers]:
    """The answers for each batch of at most `batch_size` images, in order; the model takes `normalize` of them."""
    if isinstance(model, BasisNet):
        two_stage = early_exit.TwoStage(model, rule, batch_size, normalize)
        if batch_size == 1:
            yield from (two_stage.single(image) for [image] in batches)
        else:
            yield from two_stage.stream(batches)
        return
    graph, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    program = one_stage(graph, tree, normalize)
    for images in batches:
        logits = np.asarray(program(leaves, early_exit.padded(images, batch_size)))[: len(images)]
        yield Answers(logits, np.zeros(len(images), bool))


@functools.lru_cache(maxsize=16)  # so that a second call compiles nothing
def one_stage(graph, tree, normalize: Callable) -> Callable:
    """The jitted `(weights, images) -> logits` of a model without a preview."""

    def logits(leaves, images):
        outputs = nnx.merge(graph, tree.unflatten(leaves), copy=True)(normalize(images))
        return (outputs.logits if isinstance(outputs, Outputs) else outputs).astype(jnp.float32)

    return jax.jit(logits)


def prepared(images, seen: Preprocess | None) -> tuple[np.ndarray, Callable]:
    """The images as one array, and what makes them the model's input on the device."""
    if not len(images):
        raise ValueError("no images given")
    first = np.asarray(images[0])
    if first.dtype == np.uint8 and first.ndim != 3:
        raise ValueError(f"images of {first.shape} each, expected uint8 [h, w, channels]; one image as images=[image]")
    if first.dtype != np.uint8:
        return np.asarray(images), unchanged
    if seen is None:
        raise ValueError("the model has no `preprocess`: give floats, or set model.preprocess = Preprocess(...)")
    return np.stack([seen(np.asarray(image)) for image in images]), normalizer(seen)


def unchanged(images):
    return images


@functools.lru_cache(maxsize=16)
def normalizer(seen: Preprocess) -> Callable:
    """The same function for the same preprocessing: compiled programs are found by it."""
    return seen.normalize


def costs_of(model: nnx.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Multiply-adds of an image whose answer a stage gives, by stage; the stage of those that go on comes first."""
    graph, state = nnx.split(model)
    key = graph, shape
    if key not in _costs:
        items = madds.count(nnx.merge(graph, state, copy=True), shape)
        _costs[key] = {"network": madds.total(items)}
        if isinstance(model, BasisNet):
            _costs[key] = {"specialist": madds.total(items), "preview": madds.preview_only(items)}
    return _costs[key]


_costs: dict[tuple, dict[str, int]] = {}


def prediction(
    logits: np.ndarray, stopped: np.ndarray, costs: dict[str, int], names: Sequence[str] | None
) -> Prediction:
    """Logits [n, classes] and who stopped [n] as a `Prediction`; `costs` as of `costs_of`."""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    labels = logits.argmax(axis=-1)
    stages, numbers = (np.array([*of]) for of in (costs, costs.values()))
    places = stopped.astype(int)
    return Prediction(
        labels,
        exp / exp.sum(axis=-1, keepdims=True),
        stages[places],
        numbers[places],
        [names[label] if names else str(label) for label in labels],
    )
