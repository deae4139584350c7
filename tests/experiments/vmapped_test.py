"""Runs side by side in one program are what each is alone, and their augmentation is that of the pipeline."""

import json
import sys

import conftest
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax import lax

from basisnet_jax import parsing
from basisnet_jax.data import augment, pipeline
from basisnet_jax.training import distillation

sys.path.insert(0, str(conftest.ROOT / "experiments" / "vmapped"))

import augmentation
import collect
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


@pytest.mark.parametrize(
    "amounts", [{"shift": 0.2}, {"rotation": 30.0}, {"zoom": 0.4}, {"shift": 0.2, "rotation": 30.0, "zoom": 0.4}]
)
def test_images_are_shifted_rotated_and_zoomed_as_the_pipeline_does(amounts):
    import tensorflow as tf

    amounts = {"shift": 0.0, "rotation": 0.0, "zoom": 0.0, **amounts}
    image = np.random.default_rng(0).uniform(0, 255, (9, 7, 2)).astype(np.float32)
    for seed in range(5):
        seed = tf.constant([1, seed])
        draw = tf.random.stateless_uniform([4], seed, -1.0, 1.0).numpy()
        expected = augment.affine(tf.constant(image), seed, **amounts).numpy()
        found = augmentation.affine(jnp.asarray(image), jnp.asarray(draw), ml_collections.ConfigDict(amounts))
        np.testing.assert_allclose(found, expected, atol=1e-2)


def test_each_image_is_changed_otherwise():
    image = np.random.default_rng(0).uniform(0, 255, (1, 8, 8, 1)).astype(np.float32)
    amounts = ml_collections.ConfigDict({"shift": 0.2, "rotation": 0.0, "zoom": 0.0, "flip": True})
    several = augmentation.augmented(jnp.asarray(image.repeat(64, 0), jnp.uint8), jax.random.key(0), amounts)
    assert len(np.unique(np.asarray(several).reshape(64, -1), axis=0)) == 64
    amounts.shift = 0.0
    unshifted = np.asarray(augmentation.augmented(jnp.asarray(image.repeat(64, 0)), jax.random.key(0), amounts))
    flipped = np.isclose(unshifted, image[:, :, ::-1]).all(axis=(1, 2, 3))
    assert 16 < flipped.sum() < 48 and np.isclose(unshifted, image).all(axis=(1, 2, 3)).sum() == 64 - flipped.sum()


@pytest.mark.end_to_end
@pytest.mark.slow
def test_runs_side_by_side_are_what_each_is_alone(tiny, data_dir, tmp_path, monkeypatch):
    """Of different seeds, rates and lengths, also where a part has fewer runs than the program."""
    config = parsing.resolve(tiny(data_dir=data_dir, train_eval_split="train[:100]", batch_size=64))
    with config.unlocked():
        config.augment.update(rotation=10.0, zoom=0.1, shift=0.1)
    steps = pipeline.open(config).steps_per_epoch()

    def run(seed, rate, epochs):
        config.seed, config.num_epochs, config.optimizer.learning_rate = seed, epochs, rate
        described = {"sweep": "s.py", "name": f"{seed}-{rate}-{epochs}", "varied": {}, "commit": None}
        costs = {"madds": 2.0, "preview_madds": 1.0}
        lengths = {"total_steps": round(steps * epochs), "steps_per_epoch": steps}
        return {**described, **costs, **lengths, "config": json.loads(json.dumps(config.to_dict()))}

    data = prepare.arrays(config, pipeline.open(config))
    runs = [run(0, 0.01, 1.0), run(1, 0.02, 1.0), run(1, 0.02, 2.0)]
    assert len(train.groups(runs)) == 1
    monkeypatch.setattr(train, "AT_ONCE", 100)  # so that a split is several pieces, the last of them filled up
    together = train.train(runs, data, tmp_path / "lock")
    (alone,) = train.train(runs[1:2], data, tmp_path / "lock")
    assert [row["run"] for row in together] == [run["name"] for run in runs]
    for name in ("training_loss", "coefficient_entropy"):
        assert together[1][name] == pytest.approx(alone[name], rel=1e-3)
    for name in ("top1", "preview_top1", "train_top1", "shuffled_top1", "mean_top1"):
        assert together[1][name] == pytest.approx(alone[name], abs=0.01)
    losses = [row["training_loss"] for row in together]
    assert losses[2] < losses[1] != losses[0]

    # A teacher that names the class after the right one, and is believed.
    taught = run(1, 0.02, 2.0)
    taught["config"]["distillation"] |= {"teacher": "t", "cache": "c", "weight": 1.0}
    labels = data[f"{config.train_split} label"]
    data[f"{config.train_split} teacher"] = 50 * np.eye(10, dtype=np.float16)[(labels + 1) % 10]
    (misled,) = train.train([taught], data, tmp_path / "lock")
    assert misled["top1"] < 0.1 < together[2]["top1"] - 0.05


def test_answers_are_those_of_every_image():
    """Two models that say 0 and 1 of all; labels are 0 for the first seven of ten images."""

    def look(params, batch_stats, images):
        logits = jax.nn.one_hot(params, 2)[:, None] + 0 * images[None, :, :1]
        return logits, jnp.ones((2, len(images), 1, 2)) * images[None, :, :1, None]

    def final(params, batch_stats, images, mixtures):  # right where the mixture is the image's own
        own = jnp.isclose(mixtures[:, :, 0, 0], images[None, :, 0])
        labels = (images[:, 0] >= 7)[None]
        return jax.nn.one_hot(jnp.where(own, labels, ~labels).astype(int), 2)

    images, labels = jnp.arange(10.0)[:, None], jnp.arange(10) >= 7
    keys = jax.vmap(jax.random.split)(jnp.stack([jax.random.key(0), jax.random.key(1)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "AT_ONCE", 4)
        answers = train.answers_of(look, final, jnp.array([0, 1]), None, images, labels, keys, controls=True)
    assert answers["preview_top1"].sum(axis=1).tolist() == [7, 3]
    assert answers["top1"].all() and answers["confidence"].shape == (2, 10)
    assert answers["shuffled_top1"].sum() < 10 and answers["mean_top1"].sum() == 0


SWEEP = """
CONFIG = ROOT + "/configs/digits.py"
COMMON = {"config.data_dir": DATA, "config.eval_batch_size": 100}

def sweep():
    yield {"seed": 0}
    yield {"seed": 1, "config.distillation.teacher": TEACHER, "config.distillation.cache": CACHE}
"""


@pytest.mark.slow
def test_what_is_prepared(tiny, data_dir, make_run, tmp_path, monkeypatch, capsys):
    """Every image of each split once, whatever the batch size, and beside it what the teacher says of that image."""
    monkeypatch.setattr(prepare, "ROOT", tmp_path)
    teacher = make_run(tiny(model="static", data_dir=data_dir), tmp_path / "teacher")
    names = {
        "ROOT": str(conftest.ROOT),
        "DATA": data_dir,
        "TEACHER": teacher,
        "CACHE": str(tmp_path / "cache"),
    }
    file = tmp_path / "s.py"
    file.write_text("\n".join(f"{name} = {str(value)!r}" for name, value in names.items()) + SWEEP)
    assert prepare.main([str(file), f"--output={tmp_path}"]) == 0
    with np.load(tmp_path / "digits.npz") as data:
        found = dict(data)
    rows = json.loads((tmp_path / "runs.json").read_text())
    assert [(row["sweep"], row["config"]["seed"]) for row in rows] == [("s.py", 0), ("s.py", 1)]
    assert rows[0]["name"] == "seed=0" and rows[1]["varied"]["distillation.teacher"] == teacher
    config = ml_collections.ConfigDict({**rows[1]["config"], "eval_batch_size": 7})
    prepared = pipeline.open(config)
    for name in prepare.SPLITS:
        split = config[f"{name}_split"]
        assert len(found[f"{split} image"]) == len(found[f"{split} label"]) == prepared.num_examples(split)
    whole = [batch["image"][batch["mask"].astype(bool)] for batch in prepared.eval_batches(config.test_split)]
    np.testing.assert_array_equal(found[f"{config.test_split} image"], np.concatenate(whole))
    of = distillation.load(config.distillation, config.num_classes, config.channels)
    logits = of.logits(of.weights, preprocessed(found[f"{config.train_split} image"], of.seen.image_size))
    stored = found[f"{config.train_split} teacher"]
    np.testing.assert_allclose(stored, logits, atol=0.05 * np.abs(logits).max())
    assert [name for name in found if name.endswith("teacher")] == [f"{config.train_split} teacher"]

    text = file.read_text()
    for cache, wrong in (("CACHE", "runs want two teachers"), ('""', "another without config.distill")):
        another = f'    yield {{"config.distillation.teacher": "another", "config.distillation.cache": {cache}}}\n'
        file.write_text(text + another)
        assert prepare.main([str(file), f"--output={tmp_path}"]) == 2
        assert wrong in capsys.readouterr().err


def preprocessed(images, size):
    return jax.image.resize(images.astype(np.float32), (len(images), size, size, images.shape[-1]), "bilinear")


def test_what_the_program_lacks_is_refused_in_one_line(tiny, tmp_path, capsys):
    config = parsing.resolve(tiny())
    with config.unlocked():
        config.augment.update(policy="auto")
        config.eval_crop = 0.9
    run = {"name": "r", "config": config.to_dict(), "total_steps": 3, "steps_per_epoch": 2}
    (tmp_path / "runs.json").write_text(json.dumps([run]))
    assert train.main([str(tmp_path), f"--output={tmp_path}"]) == 2
    expected = "run r has config.augment.policy, config.eval_crop below 1, a part of an epoch, which vmapped/train.py"
    assert expected in capsys.readouterr().err
    assert train.main([str(tmp_path / "missing"), f"--output={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_group_is_one_process_and_free_again_when_that_ends(tmp_path):
    path = tmp_path / "group.lock"
    with train.claimed(path) as first, train.claimed(path) as second:
        assert (first, second) == (True, False)
    with train.claimed(path) as again:
        assert again


def test_rows_go_beside_their_sweep_file_and_replace_those_of_their_run(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "HERE", tmp_path / "experiments" / "vmapped")
    (tmp_path / "experiments").mkdir()
    for top1 in (0.1, 0.2):
        rows = [
            {"sweep": "experiments/s.py", "run": "a", "top1": top1},
            {"sweep": "experiments/s.py", "run": f"b{top1}"},
        ]
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        collect.main([str(tmp_path / "rows.json")])
    kept = collect.read_csv(tmp_path / "experiments" / "s.csv")
    assert [(row["run"], row["top1"]) for row in kept] == [("a", "0.2"), ("b0.1", ""), ("b0.2", "")]
