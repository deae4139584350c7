"""Photographs as the ImageNet configs read them: distorted crops in training, the central square in evaluation."""

import io

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets

from basisnet_jax import preprocess
from basisnet_jax.data import pipeline


@pytest.fixture(scope="module")
def config(tiny, tmp_path_factory):
    """A folder of crops of two real photographs: wide JPEGs, and one PNG for the path that is not fused."""
    root = tmp_path_factory.mktemp("photos")
    for name in ("china", "flower"):
        photo = PIL.Image.fromarray(sklearn.datasets.load_sample_image(f"{name}.jpg"))
        for split, count in (("train", 8), ("validation", 4), ("test", 4)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                suffix = "png" if i == 0 else "jpg"
                photo.crop((10 * i, 5 * i, 500 + 10 * i, 300 + 5 * i)).save(root / split / name / f"{i}.{suffix}")
    config = tiny(dataset=f"folder:{root}", data_dir=str(tmp_path_factory.mktemp("data")), num_classes=2)
    config.channels, config.image_size = 3, 64
    config.batch_size, config.eval_batch_size = 8, 8
    config.augment.shift = config.augment.rotation = config.augment.zoom = 0.0
    config.augment.crop, config.augment.flip = 0.08, True
    config.eval_crop = 0.875
    return config


def changed(config, **augment):
    config = config.copy_and_resolve_references()
    config.augment.update(augment)
    return config


def test_evaluation_is_the_resized_centre(config):
    batch = next(pipeline.open(config).eval_batches("test"))
    photo = PIL.Image.fromarray(sklearn.datasets.load_sample_image("china.jpg")).crop((0, 0, 490, 300))
    encoded = io.BytesIO()
    photo.save(encoded, "png")
    side = round(0.875 * 300)
    left, top = (490 - side) // 2, (300 - side) // 2
    expected = photo.crop((left, top, left + side, top + side)).resize((64, 64), PIL.Image.Resampling.BILINEAR)
    errors = [np.abs(image.astype(float) - np.asarray(expected)).mean() for image in batch["image"]]
    assert min(errors) < 12  # one of them is this photograph, moved by a few pixels


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_resizing_is_that_of_pillow_antialiased(config, method):
    config = config.copy_and_resolve_references()
    config.resize = method
    photo = PIL.Image.fromarray(sklearn.datasets.load_sample_image("flower.jpg"))
    encoded = io.BytesIO()
    photo.save(encoded, "png")
    side = round(0.875 * photo.height)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    square = photo.crop((left, top, left + side, top + side))
    seen = pipeline.evaluation_image(preprocess.of(config), encoded.getvalue()).astype(float)
    errors = {}
    for other in ("bilinear", "bicubic"):
        expected = square.resize((64, 64), PIL.Image.Resampling[other.upper()])
        errors[other] = np.abs(seen - np.asarray(expected)).mean()
    # Pillow rounds and clips between the two directions too.
    assert errors.pop(method) < 0.2 < 1 < min(errors.values())


def test_training_crops_are_random_and_reproducible(config):
    first, again = (next(pipeline.open(config).train_batches()) for _ in range(2))
    np.testing.assert_array_equal(first["image"], again["image"])
    assert first["image"].shape == (8, 64, 64, 3)
    assert first["image"].dtype == np.uint8
    whole = next(pipeline.open(changed(config, crop=0.0, flip=False)).train_batches())
    np.testing.assert_array_equal(first["label"], whole["label"])
    assert np.abs(first["image"].astype(float) - whole["image"]).mean() > 10
    # Only the aspect is left to chance.
    full = next(pipeline.open(changed(config, crop=1.0, flip=False)).train_batches())
    assert np.abs(full["image"].astype(float) - whole["image"]).mean() < 60


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "randaugment"])
def test_policies_and_erasing_are_wired(config, policy):
    plain = next(pipeline.open(config).train_batches())
    for changes in ({"policy": policy}, {"erasing": 1.0}):
        ours = next(pipeline.open(changed(config, **changes)).train_batches())
        np.testing.assert_array_equal(ours["label"], plain["label"])
        assert (ours["image"] != plain["image"]).any()
