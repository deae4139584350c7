"""The script that prepares Fashion-MNIST: TFDS's own builder on small files of the same format."""

import gzip
import importlib.util
import struct

import conftest
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import mnist

COUNTS = {"train": 7, "test": 5}
LABELS = {"train": [9, 0, 0, 3, 0, 2, 7], "test": [9, 2, 1, 1, 6]}


@pytest.fixture
def script(monkeypatch):
    """The script, and TFDS's builder, for as many examples as the small files have."""
    path = conftest.ROOT / "experiments" / "fashion_mnist" / "prepare.py"
    spec = importlib.util.spec_from_file_location("fashion_mnist_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "EXAMPLES", COUNTS)
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", COUNTS["train"])
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", COUNTS["test"])
    return module


@pytest.fixture
def source(tmp_path):
    """A folder of four IDX files, its name none that a URL could have; image i of a split is filled with i."""
    folder = tmp_path / "a folder, #1?"
    folder.mkdir()
    for split, prefix in (("train", "train"), ("test", "t10k")):
        count = COUNTS[split]
        images = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28).tobytes()
        for name, content in (
            ("images-idx3", struct.pack(">4i", 2051, count, 28, 28) + images),
            ("labels-idx1", struct.pack(">2i", 2049, count) + bytes(LABELS[split])),
        ):
            (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
    return folder


def test_the_data_set_is_tfds_own(script, source, tmp_path, capsys):
    argv = [f"--source={source}", f"--data_dir={tmp_path / 'data'}"]
    assert script.main(argv) == 0
    builder = tfds.builder("fashion_mnist", data_dir=tmp_path / "data")
    for split, labels in LABELS.items():
        examples = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
        assert examples["image"].shape == (len(labels), 28, 28, 1)
        order = np.argsort(examples["image"][:, 0, 0, 0])
        np.testing.assert_array_equal(examples["image"][order, 14, 14, 0], np.arange(len(labels)))
        np.testing.assert_array_equal(examples["label"][order], labels)
    assert script.main([*argv, "--source=nowhere"]) == 0  # it is there already
    assert "is there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t10k-images-idx3-ubyte.gz", None, "does not exist; install"),
        ("train-images-idx3-ubyte.gz", b"no gzip", "is no gzipped IDX file"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(b"short"), "is no gzipped IDX file"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(struct.pack(">2i", 2049, 5) + bytes(5)), "is not Fashion-MNIST's"),
        ("train-images-idx3-ubyte.gz", gzip.compress(struct.pack(">4i", 2051, 8, 28, 28)), "is not Fashion-MNIST's"),
    ],
    ids=["missing", "no gzip", "no header", "other labels", "other count"],
)
def test_a_wrong_file_is_named_in_one_line(script, source, tmp_path, capsys, name, content, message):
    (source / name).unlink()
    if content is not None:
        (source / name).write_bytes(content)
    assert script.main([f"--source={source}", f"--data_dir={tmp_path / 'data'}"]) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1 and message in output.err and str(source / name) in output.err
    assert not output.out and not (tmp_path / "data").exists()
