"""Batches: reproducible from (seed, step), complete in evaluation, and errors that say what is wrong."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from basisnet_jax.configs import default

from basisnet_jax import preprocess
from basisnet_jax.data import decoding, imagenet, pipeline
from basisnet_jax.data.source import Source
from basisnet_jax.errors import UserError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(data_dir):
    config = default.get_config()
    config.update(dataset="digits", data_dir=data_dir, train_split="train[:100]", image_size=8, channels=1)
    config.update(mean=(0.3,), stddev=(0.35,))
    config.update(num_classes=10, batch_size=32, eval_batch_size=32, shuffle_buffer_size=100)
    config.augment.update(shift=0.1, rotation=10.0, zoom=0.1, flip=True)
    return config


@pytest.fixture(params=["in memory", "streamed"])
def reading(request, monkeypatch):
    """Both ways of reading: small datasets stay in memory, others are read anew every epoch."""
    if request.param == "streamed":
        monkeypatch.setattr(pipeline, "_IN_MEMORY_BYTES", 0)


def take(batches, number):
    return list(itertools.islice(batches, number))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for name, values in batch.items():
            np.testing.assert_array_equal(values, other[name])


def plain(config):
    """Without augmentation: an image then tells which example it is (all digits differ)."""
    config.augment.update(shift=0.0, rotation=0.0, zoom=0.0, flip=False)
    return config


def fingerprints(batch):
    return [image.tobytes() for image in batch["image"]]


def all_examples(config, split):
    """Fingerprints of all examples of a split, in order."""
    batches = pipeline.open(plain(config)).eval_batches(split, process_index=0, process_count=1)
    return [mark for b in batches for mark, real in zip(fingerprints(b), b["mask"], strict=True) if real]


def test_batches_have_the_documented_types(config):
    batch = next(pipeline.open(config).train_batches())
    assert batch["image"].shape == (32, 8, 8, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (32,) and batch["label"].dtype == np.int32
    batch = next(pipeline.open(config).eval_batches("validation"))
    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32 and batch["mask"].dtype == bool


@pytest.mark.slow
def test_a_resumed_run_sees_what_it_would_have_seen(config, reading):
    data = pipeline.open(config)
    assert data.steps_per_epoch() == 3  # step 3 begins the second epoch, step 6 the third
    batches = take(data.train_batches(), 8)
    for first_step in (1, 3, 5):
        assert_same(batches[first_step:], take(data.train_batches(first_step), 8 - first_step))


def test_another_seed_gives_other_batches(config, reading):
    first = next(pipeline.open(plain(config)).train_batches())
    config.seed = 1
    second = next(pipeline.open(config).train_batches())
    assert fingerprints(first) != fingerprints(second)


def test_an_epoch_sees_no_example_twice_and_epochs_differ_in_order(config, reading):
    batches = take(pipeline.open(plain(config)).train_batches(), 6)
    epochs = [[mark for batch in batches[start : start + 3] for mark in fingerprints(batch)] for start in (0, 3)]
    assert [len(set(epoch)) for epoch in epochs] == [96, 96]
    assert set(epochs[0]) | set(epochs[1]) <= set(all_examples(config, "train[:100]"))
    assert epochs[0] != epochs[1]


def test_augmentation_changes_with_the_epoch_and_not_the_labels(config, reading):
    config.train_split, config.batch_size = "train[:1]", 1
    first, second = take(pipeline.open(config).train_batches(), 2)
    assert first["label"] == second["label"]
    assert np.any(first["image"] != second["image"])
    original = next(pipeline.open(plain(config)).train_batches())
    assert np.any(first["image"] != original["image"])
    assert fingerprints(original) == all_examples(config, "train[:1]")


def test_hosts_train_on_disjoint_shares_of_equal_size(config, reading):
    config = plain(config)
    config.batch_size = 30
    data = pipeline.open(config)
    assert data.steps_per_epoch(process_count=3) == 3  # 33 examples each, 10 a batch
    seen = [
        mark
        for host in range(3)
        for batch in take(data.train_batches(process_index=host, process_count=3), 3)
        for mark in fingerprints(batch)
    ]
    assert len(seen) == len(set(seen)) == 90


@pytest.mark.parametrize("count", [1, 2, 3])
def test_evaluation_covers_every_example_once(config, reading, count):
    split, config.eval_batch_size = "validation[:100]", 6 * count
    data = pipeline.open(config)
    hosts = [list(data.eval_batches(split, process_index=i, process_count=count)) for i in range(count)]
    assert {len(batches) for batches in hosts} == {{1: 17, 2: 9, 3: 6}[count]}  # shares of 100, 50, and 34 or 33
    batches = [batch for host in hosts for batch in host]
    assert all(batch["image"].shape[0] == batch["mask"].shape[0] == 6 for batch in batches)
    assert not any(batch["image"][~batch["mask"]].any() for batch in batches)
    real = [mark for b in batches for mark, kept in zip(fingerprints(b), b["mask"], strict=True) if kept]
    assert real == all_examples(config, split) and len(set(real)) == 100


def test_a_host_without_examples_still_makes_its_batches(config, reading):
    config.eval_batch_size = 6
    data = pipeline.open(config)
    hosts = [list(data.eval_batches("test[:2]", process_index=i, process_count=3)) for i in range(3)]
    assert [[batch["mask"].sum() for batch in batches] for batches in hosts] == [[1], [1], [0]]


def test_evaluation_does_not_depend_on_how_it_is_read(config, monkeypatch):
    in_memory = list(pipeline.open(config).eval_batches("test"))
    monkeypatch.setattr(pipeline, "_IN_MEMORY_BYTES", 0)
    assert_same(in_memory, list(pipeline.open(config).eval_batches("test")))


def test_grey_images_are_tiled_to_three_channels_and_resized(config):
    config.channels, config.image_size = 3, 16
    image = next(pipeline.open(config).eval_batches("test"))["image"]
    assert image.shape == (32, 16, 16, 3)
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


def test_a_grey_photograph_in_colour_becomes_the_channel_it_was(config):
    grey = np.random.default_rng(0).integers(0, 256, (20, 30, 1), np.uint8)
    pixels = [
        decoding.to_uint8(decoding.resize(preprocess.of(config), image))
        for image in (grey, np.repeat(grey, 3, axis=-1))
    ]
    np.testing.assert_array_equal(*pixels)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(40, 7, 3), (9, 30, 1), (16, 16, 3), (1, 5, 3)])
def test_side_after_side_an_image_is_resized_as_tensorflow_does(config, method, shape):
    config.resize, config.image_size, config.channels = method, 16, shape[-1]
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = tf.image.resize(image, [16, 16], method, antialias=True)
    np.testing.assert_allclose(decoding.resize(preprocess.of(config), image), expected, atol=1e-4)


def test_the_number_of_classes_can_be_left_to_the_dataset(config):
    source = Source.find(config)
    assert source.completed(config) is config
    open_config = config.copy_and_resolve_references()
    open_config.num_classes = 0
    assert source.completed(open_config).to_dict() == config.to_dict()
    assert pipeline.open(open_config).num_classes == 10


def test_class_names(config, tmp_path):
    assert pipeline.open(config).class_names == list("0123456789")
    imagenet2012 = tfds.builder("imagenet2012", data_dir=tmp_path)
    assert imagenet2012.info.features["label"].names[:2] == ["n01440764", "n01443537"]
    names = imagenet.readable(imagenet2012.info.features["label"].names)
    known = {0: "tench", 281: "tabby", 657: "missile", 967: "espresso", 999: "toilet tissue"}
    assert {label: names[label] for label in known} == known
    assert len(names) == len({name.lower() for name in names}) == 1000
    assert all(name == name.strip() != "" for name in names)


def test_imagenet_in_another_order(tmp_path):
    ids = tfds.builder("imagenet2012", data_dir=tmp_path).info.features["label"].names
    assert imagenet.readable(ids[::-1]) == imagenet.class_names()[::-1]
    assert imagenet.readable(ids[:10]) == ids[:10]  # Imagenette and others like it


def test_num_examples_reads_split_strings(config):
    assert pipeline.open(config).num_examples("train[:50]+test") == 410


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "digit"}, ["'digit'", "digits"]),
        ({"dataset": "no such name"}, ["'no such name'"]),
        ({"num_classes": 7}, ["7", "digits", "10"]),
        ({"channels": 2}, ["2", "1 or 3"]),
        ({"resize": "nearest"}, ["'nearest'", "bilinear, bicubic"]),
        ({"train_split": "training"}, ["'training'", "train (1077)", "validation (360)"]),
        ({"batch_size": 128}, ["128", "train[:100]", "100"]),
    ],
)
def test_mistakes_are_named_in_one_line(config, changes, words):
    config.update(changes)
    with pytest.raises(UserError) as error:
        pipeline.open(config).train_batches()
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_a_batch_that_hosts_cannot_share(config):
    with pytest.raises(UserError, match="batch_size is 32, which 3 hosts"):
        pipeline.open(config).train_batches(process_index=0, process_count=3)


def test_a_dataset_that_cannot_be_had_says_where_and_how(config, tmp_path):
    config.update({"dataset": "imagenet2012", "data_dir": str(tmp_path), "num_classes": 1000})  # to be fetched by hand
    with pytest.raises(UserError, match="tfds build imagenet2012") as error:
        pipeline.open(config)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_importing_the_package_does_not_load_tensorflow():
    program = "import sys, basisnet_jax, basisnet_jax.data; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
