"""The embedded digits dataset: its splits, its pixels, and that it is prepared the same way everywhere."""

import numpy as np
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds

from basisnet_jax.data import digits
from basisnet_jax.data.source import Source

SIZES = {"train": 1077, "validation": 360, "test": 360}


def prepare(data_dir) -> dict[str, dict[str, np.ndarray]]:
    builder = digits.Digits(data_dir=data_dir)
    builder.download_and_prepare()
    parts = {name: builder.as_dataset(split=name, batch_size=-1) for name in SIZES}
    return {name: tfds.as_numpy(part) for name, part in parts.items()}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("data"))


def test_split_sizes_and_disjoint_ids(parts):
    assert {name: len(part["id"]) for name, part in parts.items()} == SIZES
    ids = np.concatenate([part["id"] for part in parts.values()])
    np.testing.assert_array_equal(np.sort(ids), np.arange(1797))


def test_every_class_is_divided_in_the_same_proportion(parts):
    totals = np.bincount(sklearn.datasets.load_digits().target)
    for name, part in parts.items():
        expected = totals * (SIZES[name] / 1797)
        # Dealing twice may be off by one each time.
        assert np.abs(np.bincount(part["label"], minlength=10) - expected).max() < 2, name


def test_images_are_those_of_sklearn_scaled_to_bytes(parts):
    source = sklearn.datasets.load_digits()
    for part in parts.values():
        assert part["image"].shape[1:] == (8, 8, 1) and part["image"].dtype == np.uint8
        assert part["image"].min() == 0 and part["image"].max() == 255
        np.testing.assert_array_equal(part["label"], source.target[part["id"]])
        np.testing.assert_allclose(part["image"][..., 0], source.images[part["id"]] * 255 / 16, atol=0.5)


def test_a_second_preparation_elsewhere_is_identical(parts, tmp_path):
    again = prepare(tmp_path)
    for name, part in parts.items():
        for field, values in part.items():
            np.testing.assert_array_equal(values, again[name][field])


def test_two_that_prepare_at_once_do_not_break_each_other(tmp_path, monkeypatch):
    original = digits.split_indices

    def overtaken(labels):
        """The other process starts and finishes while this one is at work."""
        monkeypatch.setattr(digits, "split_indices", original)
        digits.Digits(data_dir=tmp_path).download_and_prepare()
        return original(labels)

    monkeypatch.setattr(digits, "split_indices", overtaken)
    assert Source("digits", str(tmp_path), "stop").splits["train"] == 1077
    assert digits.split_indices is original
