"""Odd folders of images: what is used of them, what is told, and what is refused in one line. One table each."""

import errno
import io
import itertools
import json
import os
import pathlib

import conftest
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from basisnet_jax import cli
from basisnet_jax.data import listing, pipeline
from basisnet_jax.data.source import Source
from basisnet_jax.errors import UserError
from basisnet_jax.training import loop

pytestmark = pytest.mark.odd("folder")

MANY = 30  # images of a class, of which each split gets some
ODD_NAME = os.fsdecode(b"caf\xe9.png")  # no UTF-8


def jpeg(quality=75):
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


JPEG = jpeg()
BROKEN = {
    "empty": b"",
    "text": b"no image",
    "truncated": JPEG[: len(JPEG) // 2],
    "zeros": jpeg(95)[:2500] + bytes(4000),  # Pillow reads it, TensorFlow does not
    "bomb": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xff\xff\0\0\xff\xff\x08\x02\0\0\09gN\x07\0\0\0\0IDAT",
}


def put(root, *names, content=JPEG):
    """Files of these names below the root; a name that ends with "/" stands for a few images in such a folder."""
    for name in names:
        for each in [f"{name}{i}.jpg" for i in range(3)] if name.endswith("/") else [name]:
            path = root / each
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


def many(root, *classes):
    return put(root, *(f"{name}/{i}.jpg" for name in classes for i in range(MANY)))


def split(root, *others):
    """Two classes with the three splits, and other files."""
    return put(root, *(f"{name}/{label}/" for name in ("train", "val", "test") for label in ("cat", "dog")), *others)


def link(root, name, target):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(target)


def held_out_only(root):
    """A class whose only image is carved out for validation."""
    for i in range(1000):
        try:
            listing.find(put(root / str(i), f"rare/{i}.jpg") and many(root / str(i), "cat", "dog"), "stop")
        except UserError:
            return root / str(i)


# What is refused, by name: how it is made (of an empty folder; may return the one to give), and what the line says.
REFUSED = {
    "no folder": (lambda root: root / "nothing", "nothing' does not exist"),
    "a file": (lambda root: put(root, "a.jpg") / "a.jpg", "a.jpg' is not a folder"),
    "a link to itself as the folder": (
        lambda root: link(root, "x", "x") or root / "x",
        "/x' cannot be read (Too many levels of symbolic links)",
    ),
    "an empty folder": (lambda root: None, "holds no class folders with images (.bmp"),
    "images without classes": (lambda root: put(root, "1.jpg", "2.jpg"), "holds images, but no class folders"),
    "hidden classes": (lambda root: put(root, ".cat/", ".dog/"), "holds no class folders with images"),
    "other types": (lambda root: put(root, "cat/1.heic", "dog/2.svg"), "holds no class folders with images"),
    "a container": (lambda root: many(root, "images/cat", "images/dog"), "did you mean folder:{root}/images?"),
    "a container of splits": (lambda root: split(root / "data").parent, "did you mean folder:{root}/data?"),
    "a container in train": (lambda root: put(root, "train/images/cat/", "train/images/dog/"), "{root}/train/CLASS/IM"),
    "one class": (lambda root: many(root, "cat"), "holds one class, 'cat', expected at least two"),
    "a class in test only": (
        lambda root: split(root, "test/eel/"),
        "has no training images of class eel: only in test",
    ),
    "another case": (lambda root: split(root, "val/Cat/"), "has no training images of class Cat: only in validation"),
    "an untrained class": (
        lambda root: split(root, "test/eel/", "train/eel/a.txt"),
        "has no training images of class eel",
    ),
    "test alone": (lambda root: put(root, "test/cat/", "test/dog/"), "has the split test, but no training split"),
    "test beside classes": (
        lambda root: many(put(root, "test/cat/", "test/dog/"), "cat", "dog"),
        "has the split test,",
    ),
    "two validation splits": (lambda root: split(root, "valid/cat/"), "val and {root}/valid are both the validation"),
    "two cases of a split": (lambda root: split(root, "Train/cat/"), "Train and {root}/train are both the train split"),
    "splits without classes": (lambda root: put(root, "train/", "test/"), "{root}/test/CLASS/IMAGE"),
    "test without classes": (lambda root: put(root, "train/cat/", "train/dog/", "test/"), "{root}/test/CLASS/IMAGE"),
    "splits in classes": (
        lambda root: put(root, "cat/train/", "cat/test/", "dog/train/", "dog/test/"),
        "{root}/cat holds folders of splits; expected {root}/train/cat/IMAGE",
    ),
    "an empty split": (
        lambda root: put(root, "train/cat/", "train/dog/", "test/cat/a.txt"),
        "{root}/test, the folder of the test split, holds no images",
    ),
    "too few": (lambda root: put(root, "cat/1.jpg", "dog/2.jpg"), "too few images, 2: none of them goes to the val"),
    "a class that is carved away": (held_out_only, "no training images of class rare: all of them went to the"),
    "a link to nothing": (
        lambda root: link(many(root, "cat", "dog"), "cat/x.jpg", "gone.jpg"),
        "cat/x.jpg cannot be read (a link to gone.jpg, which does not exist); repair or remove it, or set config.bad_",
    ),
    "a link to itself": (lambda root: link(many(root, "cat", "dog"), "cat/x.jpg", "x.jpg"), "cat/x.jpg cannot be read"),
    "a folder's link to nothing": (
        lambda root: link(many(root, "cat", "dog"), "cat/more", "gone"),
        "cat/more cannot be read (a link to gone, which",
    ),
    "a class that is a link to nothing": (
        lambda root: link(many(root, "cat", "dog"), "eel", "gone"),
        "{root}/eel cannot be read (a link to gone, which does not exist); repair or remove it",
    ),
    "a class of links to nothing": (
        lambda root: link(many(root, "cat", "dog"), "eel/1.jpg", "gone"),
        "{root}/eel/1.jpg cannot be read (a link to gone, which does not exist); repair or remove it",
    ),
    "a space in a class": (lambda root: many(root, "cat", "dog "), "class folder 'dog '"),
    "a line break in a class": (lambda root: many(root, "cat", "do\ng"), r"class folder 'do\ng'"),
    "a class that is no UTF-8": (lambda root: many(root, "cat", ODD_NAME), r"class folder 'caf\udce9.png'"),
    **{
        f"a broken file: {how}": (
            lambda root, content=content: put(many(root, "cat", "dog"), "cat/x.jpg", content=content),
            f"cat/x.jpg is not a readable image ({reason}",
        )
        for (how, content), reason in zip(
            BROKEN.items(),
            (
                "unknown format",
                "unknown format",
                "jpeg::Uncompress failed",
                "jpeg::Uncompress failed",
                "Image size",
            ),
            strict=True,
        )
    },
    "a broken file of an odd name": (
        lambda root: put(many(root, "cat", "dog"), f"cat/{ODD_NAME}", content=b"x"),
        r"cat/caf\udce9.png is not a readable image (unknown format); remove it, or set config.bad_images=skip",
    ),
    "a line break in a broken file's name": (
        lambda root: put(many(root, "cat", "dog"), "cat/a\nb.png", content=b"x"),
        r"cat/a\nb.png is not a readable image",
    ),
}
NEVER_SKIPPED = ("a class that is a link to nothing", "a class of links to nothing", "a container", "one class")


def renamed(root, **names):
    for old, new in names.items():
        (root / old).rename(root / new)


def emptied(root):
    (split(root) / "train" / "eel").mkdir()


def linked(root, name, target):
    link(split(root), name, target)


# What is used, by name: how it is made, and what is left out, why. There are three images of each class and split.
USED = {
    "splits in capitals": (lambda root: renamed(split(root), train="Train", val="VAL", test="tesT"), {}),
    "valid": (lambda root: renamed(split(root), val="valid"), {}),
    "dev": (lambda root: renamed(split(root), train="training", val="Dev", test="testing"), {}),
    "hidden": (
        lambda root: split(root, ".git/a.jpg", "train/.eel/a.jpg", "train/cat/.old/a.jpg", "train/dog/.a.jpg"),
        {"hidden": [".git", "train/.eel", "train/cat/.old", "train/dog/.a.jpg"]},
    ),
    "an empty class": (emptied, {"empty folders": ["train/eel"]}),
    "a class of another type": (
        lambda root: split(root, "train/eel/1.heic"),
        {".heic files": ["train/eel/1.heic"], "folders without images": ["train/eel"]},
    ),
    "other files": (
        lambda root: split(root, "train/cat/a.txt", "test/dog/b.TXT", "train/cat/README", "labels.csv"),
        {
            ".csv files": ["labels.csv"],
            ".txt files": ["test/dog/b.TXT", "train/cat/a.txt"],
            "files without suffix": ["train/cat/README"],
        },
    ),
    "images outside classes": (
        lambda root: split(root, "all.png", "train/all.png"),
        {"images outside class folders": ["all.png", "train/all.png"]},
    ),
    "beside the splits": (lambda root: split(root, "extra/eel/"), {"folders beside the splits": ["extra"]}),
    "an empty split folder": (
        lambda root: (split(root) / "dev").mkdir(),
        {"empty folders": ["dev"]},
    ),
    "a pipe": (
        lambda root: os.mkfifo(split(root) / "train" / "cat" / "x.jpg"),
        {"pipes and devices": ["train/cat/x.jpg"]},
    ),
    "a link to a folder that it is in": (
        lambda root: linked(root, "train/cat/up", ".."),
        {"links to a folder that contains them": ["train/cat/up"]},
    ),
    "a link that is its own folder": (
        lambda root: linked(root, "train/cat/up", "."),
        {"links to a folder that contains them": ["train/cat/up"]},
    ),
}

# What has other images, by name: how it is made, and the images of training by class.
COUNTED = {
    "classes called as splits": (lambda root: many(root, "train", "test", "bus"), {"bus": 30, "test": 30, "train": 30}),
    "a class called valid": (lambda root: many(root, "valid", "invalid"), {"invalid": 30, "valid": 30}),
    "deep folders": (lambda root: many(put(root, "dog/a/b/c/"), "cat", "dog"), {"cat": 30, "dog": 33}),
    "a folder called as an image": (lambda root: many(put(root, "dog/a.jpg/"), "cat", "dog"), {"cat": 30, "dog": 33}),
    "capital suffixes": (lambda root: many(put(root, "dog/A.JPG"), "cat", "dog"), {"cat": 30, "dog": 31}),
    "a class behind a link": (
        lambda root: link(many(root, "cat", ".store/dog"), "dog", ".store/dog"),
        {"cat": 30, "dog": 30},
    ),
    "images behind nested links": (
        lambda root: [
            many(root, "cat", "dog"),
            put(root, ".a/1.jpg", ".b/2.jpg"),
            link(root, ".a/more", "../.b"),
            link(root, "dog/more", "../.a"),
            link(root, "dog/one.jpg", "../.b/2.jpg"),
        ],
        {"cat": 30, "dog": 33},
    ),
    "a name that is no UTF-8": (lambda root: many(put(root, f"dog/{ODD_NAME}"), "cat", "dog"), {"cat": 30, "dog": 31}),
    "backslashes": (lambda root: many(put(root, "dog/a/b.jpg", r"dog/a\b.jpg"), "cat", "dog"), {"cat": 30, "dog": 32}),
}

# What is skipped with bad_images=skip, by name: how it is made below a folder of classes, and the reason that is kept.
SKIPPED = {
    **{
        how: (lambda root, content=content: put(root, "cat/x.jpg", content=content), "x.jpg is not a readable image")
        for how, content in BROKEN.items()
    },
    "a link to nothing": (lambda root: link(root, "cat/x.jpg", "gone"), "a link to gone, which does not exist"),
    "a link to itself": (lambda root: link(root, "cat/x.jpg", "x.jpg"), os.strerror(errno.ELOOP)),
}


CONFIG = """
import conftest

def get_config():
    return conftest.tiny_config(num_classes=0, channels=3, batch_size=8, eval_batch_size=8)
"""


@pytest.fixture
def train(tmp_path, capfd, monkeypatch, record_property):
    """`train(root, *argv)`: exit code, stdout and the lines on stderr of a run that ends before it makes a model."""
    (tmp_path / "config.py").write_text(CONFIG)

    def refuse(config):
        raise UserError("the data are fine")

    monkeypatch.setattr(loop.models, "create", refuse)

    def run(root, *argv):
        given = [f"--config.dataset=folder:{root}", f"--config.data_dir={tmp_path}/data", f"--workdir={tmp_path}/run"]
        code = cli.main(["train", f"--config={tmp_path}/config.py", *given, *argv])
        assert not (tmp_path / "run").exists()
        out, err = capfd.readouterr()
        conftest.record_told(record_property, code, err if "Traceback" in err else "\n".join(told(err.splitlines())))
        assert "Traceback" not in err
        return code, out, err.splitlines()

    return run


def told(lines):
    """What the command says, without TFDS's bars."""
    return [line for line in lines if line.startswith("basisnet: ")]


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, train, tmp_path):
    make, expected = REFUSED[name]
    root = tmp_path / "images"
    root.mkdir()
    made = make(root)
    given = made if isinstance(made, pathlib.Path) else root
    for argv in ((), ("--config.bad_images=skip",))[: 1 + (name in NEVER_SKIPPED)]:
        code, _, lines = train(given, *argv)
        assert code == 2
        [line] = told(lines)
        assert expected.format(root=root) in line and str(given) in line
        if "broken" not in name:
            assert lines == [line]


@pytest.mark.parametrize("name", USED)
def test_used(name, tmp_path):
    make, ignored = USED[name]
    make(tmp_path)
    found = listing.find(tmp_path, "stop")
    assert found.counts() == {split: {"cat": 3, "dog": 3} for split in ("train", "validation", "test")}
    assert found.ignored == ignored
    text = listing.summary(found, "folder:x")
    assert all(f"left out, {why}: {len(names)} ({names[0]}" in text for why, names in ignored.items())


@pytest.mark.parametrize("name", COUNTED)
def test_counted(name, tmp_path):
    make, classes = COUNTED[name]
    root = tmp_path / "images"
    make(root)
    source = Source(f"folder:{root}", str(tmp_path / "data"), "stop")
    counts = source.folder.listing.counts()
    assert {label: sum(split.get(label, 0) for split in counts.values()) for label in classes} == classes
    assert source.classes == sorted(classes)
    if name in ("a name that is no UTF-8", "backslashes"):  # are prepared, recorded and told as well
        assert sum(source.splits.values()) == sum(classes.values())
        assert set(json.loads(json.dumps(source.record()))["files"]) == set(source.folder.stats)
        source.summary().encode()


@pytest.mark.parametrize("name", SKIPPED)
def test_skipped(name, train, tmp_path):
    make, reason = SKIPPED[name]
    root = tmp_path / "images"
    make(many(root, "cat", "dog"))
    for _ in range(2):  # also where it was prepared before
        code, _, lines = train(root, "--config.bad_images=skip")
        assert (code, told(lines)[-1]) == (2, "basisnet: the data are fine")
        assert told(lines)[0] == f"basisnet: skipped in folder:{root}, unreadable: 1 (cat/x.jpg)"
    source = Source(f"folder:{root}", str(tmp_path / "data"), "skip")
    assert list(source.skipped) == ["cat/x.jpg"] and reason in source.record()["skipped"]["cat/x.jpg"]
    images = {split: sum(labels.values()) for split, labels in source.record()["images"].items()}
    assert images == source.splits and sum(images.values()) == 2 * MANY
    assert train(root)[0] == 2


def test_a_damaged_jpeg_is_named_once_and_trained_on_in_silence(train, tmp_path, tiny, capfd):
    """In the process's descriptor 2, where libjpeg writes."""
    root = many(tmp_path / "images", "cat", "dog")
    damaged, tail = root / "cat/x.jpg", bytes(12) + JPEG[-2:]
    damaged.write_bytes(JPEG[:-2] + tail)
    decoded = tf.io.decode_image(damaged.read_bytes()).numpy()
    [text] = capfd.readouterr().err.splitlines()
    assert text.startswith("Corrupt JPEG data: ")
    for _ in range(2):  # also where it was prepared before
        _, _, lines = train(root)
        line = f"basisnet: damaged in folder:{root}, but used: 1 (cat/x.jpg)"
        assert told(lines) == [line, "basisnet: the data are fine"] and not any("JPEG data" in line for line in lines)
    config = {"dataset": f"folder:{root}", "data_dir": f"{tmp_path}/data", "num_classes": 2, "channels": 3}
    data = pipeline.open(tiny(**config, batch_size=8))
    assert data.source.record()["damaged"] == {"cat/x.jpg": text}
    split = next(split for split, pairs in data.source.folder.listing.files.items() if ("cat", damaged) in pairs)
    examples = data.source.builder.as_dataset(split=split).as_numpy_iterator()
    assert any(np.array_equal(decoded, example["image"]) for example in examples)  # pixel for pixel
    list(itertools.islice(data.train_batches(), data.steps_per_epoch() + 1))
    list(data.eval_batches("train+validation+test"))
    assert "JPEG" not in capfd.readouterr().err


@pytest.fixture
def deny(monkeypatch):
    """`deny(path)`: from now on it cannot be read. The owner of the tests may be root, whom no mode keeps out."""
    original = {name: getattr(os, name) for name in ("scandir", "listdir")}
    read_bytes, denied = pathlib.Path.read_bytes, set()

    def check(path):
        if str(path) in denied:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def denying(function):
        return lambda path=".": check(path) or function(path)

    for name, function in original.items():
        monkeypatch.setattr(os, name, denying(function))
    monkeypatch.setattr(pathlib.Path, "read_bytes", denying(read_bytes))
    return lambda path: denied.add(str(path))


@pytest.mark.parametrize("name", ["", "cat", "cat/more", "cat/0.jpg"])
def test_what_may_not_be_read(name, train, tmp_path, deny):
    root = tmp_path / "images"
    put(many(root, "cat", "dog"), "cat/more/1.jpg")
    deny(root / name)
    code, _, lines = train(root)
    [line] = told(lines)
    assert code == 2 and f"{root / name} " in line and "(Permission denied)" in line
    code, _, lines = train(root, "--config.bad_images=skip")
    if name in ("", "cat"):  # no class is lost
        assert told(lines) == [line.replace(", or set config.bad_images=skip", "")] and "skip" not in told(lines)[0]
    else:
        assert told(lines) == [
            f"basisnet: skipped in folder:{root}, unreadable: 1 ({name})",
            "basisnet: the data are fine",
        ]
        source = Source(f"folder:{root}", str(tmp_path / "data"), "skip")
        assert "Permission denied" in source.record()["skipped"][name]


def test_a_class_without_one_readable_image(train, tmp_path):
    root = tmp_path / "images"
    put(many(root, "cat", "dog"), *(f"eel/{i}.jpg" for i in range(MANY)), content=b"no image")
    code, _, lines = train(many(root, "cat", "dog"), "--config.bad_images=skip")
    [line] = told(lines)
    assert code == 2 and f"none of the train images of class 'eel' can be read: {root}/eel/" in line


def test_bad_images_is_one_of_two(train, tmp_path):
    code, _, lines = train(many(tmp_path / "images", "cat", "dog"), "--config.bad_images=maybe")
    assert (code, lines) == (2, ["basisnet: config.bad_images='maybe', expected one of stop, skip"])


def test_what_is_printed_and_recorded(train, tmp_path):
    root = split(tmp_path / "images", "train/eel/", "train/eel/notes.txt", "train/eel/4.jpg")
    _, out, _ = train(root)
    assert out.splitlines() == [
        f"folder:{root}: 3 classes (cat, dog, eel), 22 images",
        "  train       10 images, 3 (cat) to 4 (eel) per class",
        "  validation  6 images, 3 per class; none of eel",
        "  test        6 images, 3 per class; none of eel",
        "  left out, .txt files: 1 (train/eel/notes.txt)",
    ]
    record = Source(f"folder:{root}", str(tmp_path / "data"), "stop").record()
    assert record["images"]["train"] == {"cat": 3, "dog": 3, "eel": 4}
    assert record["ignored"] == {".txt files": ["train/eel/notes.txt"]} and record["skipped"] == {}
    _, out, _ = train(many(tmp_path / "other", "cat", "dog"))
    assert out.count("per class, taken from train") == 2
