"""Runs side by side in one program are what each is alone, and their augmentation is that of the pipeline."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax import lax

from basisnet_jax import augment, cli
from basisnet_jax.data import pipeline

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "experiments" / "vmapped"))

import prepare
import train


@pytest.mark.parametrize(("window", "stride", "groups"), [(1, 1, 1), (1, 2, 1), (3, 2, 1), (3, 1, 8), (5, 2, 8)])
def test_products_are_the_convolution(window, stride, groups):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(2, 9, 8, 8)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(window, window, 8 // groups, 8)), jnp.float32)
    given = (stride, stride), "SAME", None, (1, 1), ("NHWC", "HWIO", "NHWC"), groups
    expected = lax.conv_general_dilated(x, kernel, *given)
    np.testing.assert_allclose(train.as_products(x, kernel, *given), expected, rtol=1e-4, atol=1e-4)


def test_images_are_shifted_as_the_pipeline_does():
    import tensorflow as tf

    image = np.random.default_rng(0).uniform(0, 255, (1, 8, 8, 1)).astype(np.float32)
    seed = tf.constant([1, 2])
    draw = tf.random.stateless_uniform([4], seed, -1.0, 1.0).numpy()
    expected = augment.affine(tf.constant(image[0]), seed, shift=0.2, rotation=0.0, zoom=0.0).numpy()
    columns, rows = (train.between(jnp.array([-0.2 * shift]), 8)[0] for shift in draw[2:])
    np.testing.assert_allclose(rows @ image[0, :, :, 0] @ columns.T, expected[:, :, 0], atol=1e-2)

    amounts = ml_collections.ConfigDict({"shift": 0.2, "flip": True})
    several = train.augmented(jnp.asarray(image.repeat(64, 0), jnp.uint8), jax.random.key(0), amounts)
    assert len(np.unique(np.asarray(several).reshape(64, -1), axis=0)) == 64
    amounts.shift = 0.0
    unshifted = np.asarray(train.augmented(jnp.asarray(image.repeat(64, 0)), jax.random.key(0), amounts))
    flipped = np.isclose(unshifted, image[:, :, ::-1]).all(axis=(1, 2, 3))
    assert 16 < flipped.sum() < 48 and np.isclose(unshifted, image).all(axis=(1, 2, 3)).sum() == 64 - flipped.sum()


@pytest.mark.slow
def test_runs_side_by_side_are_what_each_is_alone(tiny, data_dir, tmp_path):
    """Of different seeds and rates; the second of two is trained by both programs, and a longer run by one of them."""
    config = cli.resolve(tiny(data_dir=data_dir, train_eval_split="train[:100]", batch_size=64))
    with config.unlocked():
        config.augment.update(rotation=0.0, zoom=0.0, shift=0.1)
    steps = pipeline.steps_per_epoch(config)

    def run(seed, rate, epochs):
        config.seed, config.num_epochs, config.optimizer.learning_rate = seed, epochs, rate
        described = {"sweep": "s.py", "name": f"{seed}-{rate}-{epochs}", "varied": {}, "commit": None}
        costs = {"madds": 2.0, "preview_madds": 1.0}
        lengths = {"total_steps": round(steps * epochs), "steps_per_epoch": steps}
        return {**described, **costs, **lengths, "config": json.loads(json.dumps(config.to_dict()))}

    data = prepare.arrays(config)
    runs = [run(0, 0.01, 1.0), run(1, 0.02, 1.0), run(1, 0.02, 2.0), run(0, 0.01, 2.0)]
    assert len(train.groups(runs)) == 1
    together, images = train.train(runs, data, tmp_path / "lock", None)
    (alone,), images_alone = train.train(runs[1:2], data, tmp_path / "lock", None)
    assert together[1]["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert together[1]["top1"] == pytest.approx(alone["top1"], abs=0.02)
    np.testing.assert_allclose(images["test_confidence"][1], images_alone["test_confidence"][0], atol=2e-3)
    losses = [row["loss"] for row in together]
    assert len(set(losses)) == 4 and losses[2] < losses[1] and losses[3] < losses[0]
    assert together[0]["shuffled_top1"] == pytest.approx(together[0]["top1"], abs=0.5)


def test_what_the_program_lacks_is_refused(tiny):
    config = cli.resolve(tiny())
    with config.unlocked():
        config.augment.update(rotation=0.0, zoom=0.1)
    with pytest.raises(ValueError, match="r: no zoom here"):
        train.check(config, {"name": "r", "total_steps": 2, "steps_per_epoch": 2})
