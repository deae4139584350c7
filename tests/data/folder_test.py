"""One's own images: splits, odd files, broken files, and files that change while a run, or between its lives."""

import io
import json
import os
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest

from basisnet_jax import cli, parsing
from basisnet_jax.data import digests, folder, listing, pipeline
from basisnet_jax.data.source import Source
from basisnet_jax.errors import UserError
from basisnet_jax.workdir import data_record, runs


def picture(value=128, size=(12, 8), mode="RGB"):
    return PIL.Image.new(mode, size, value if mode in ("L", "I;16") else (value,) * len(mode))


def fill(root, classes=("cat", "dog"), each=30):
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            picture(40 + 100 * label).save(root / name / f"{i}.jpg")
    return root


def decoded(path):
    image = PIL.Image.open(io.BytesIO(folder.encode(path)))
    return np.asarray(image.convert("RGB"))


def test_missing_splits_are_carved_and_stay_as_they_are(tmp_path):
    root = fill(tmp_path / "images", each=100)
    files = listing.find(root, "stop").files
    everything = [path for pairs in files.values() for _, path in pairs]
    assert len(everything) == len(set(everything)) == 200
    assert 8 <= len(files["validation"]) <= 35
    assert 8 <= len(files["test"]) <= 35
    before = {split: set(pairs) for split, pairs in files.items()}
    picture().save(root / "cat" / "new.png")
    after = listing.find(root, "stop")
    assert all(before[split] <= set(after.files[split]) for split in before)
    assert digests.fingerprint(root, files, after.stats) != digests.fingerprint(root, after.files, after.stats)


def carved(**sizes):
    """Names by split of a folder with so many images of each class."""
    root = pathlib.Path("/images")
    train = [(label, root / label / f"{i}.jpg") for label, size in sizes.items() for i in range(size)]
    files = listing.carve(root, {"train": train})
    assert sorted(pair for pairs in files.values() for pair in pairs) == sorted(train)
    return {split: [str(path.relative_to(root)) for _, path in pairs] for split, pairs in files.items()}


def test_splits_are_those_of_earlier_runs():
    files = carved(cat=30, dog=30)
    assert files["validation"] == ["cat/3.jpg", "cat/13.jpg", *(f"dog/{i}.jpg" for i in (6, 9, 21, 22))]
    assert files["test"] == [f"dog/{i}.jpg" for i in (13, 16, 19, 23, 24)]


def test_few_images_are_held_out_of_each_class_that_has_three():
    files = carved(cat=3, dog=3, eel=2)  # by their names alone all would be trained on
    classes = {split: [name.split("/")[0] for name in names] for split, names in files.items()}
    assert classes == {"train": ["cat", "dog", "eel", "eel"], "validation": ["cat", "dog"], "test": ["cat", "dog"]}
    # When so many images have come that the names decide, nothing that was trained on is held out.
    more = carved(cat=30, dog=30, eel=2)
    assert not set(files["train"]) & {*more["validation"], *more["test"]}
    # A class keeps its last image of train.
    assert carved(cat=3, wolf=3)["test"] == ["cat/0.jpg"]
    with pytest.raises(UserError, match="too few images, 4: none of them goes to the validation split"):
        carved(cat=2, dog=2)


def test_named_splits_are_used(tmp_path):
    for split in ("train", "val", "test"):
        fill(tmp_path / split, each=3)
    files = listing.find(tmp_path, "stop").files
    assert {split: len(pairs) for split, pairs in files.items()} == {"train": 6, "validation": 6, "test": 6}


def test_odd_images_become_upright_rgb(tmp_path):
    path = tmp_path / "image.png"
    picture(77, mode="L").save(path)
    np.testing.assert_array_equal(decoded(path), 77)
    PIL.Image.fromarray(np.full((8, 12), 257 * 200, np.uint16)).save(path)
    np.testing.assert_array_equal(decoded(path), 200)
    PIL.Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(path)
    np.testing.assert_array_equal(decoded(path), 255)  # transparent: white
    cmyk = tmp_path / "cmyk.jpg"
    PIL.Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(cmyk, quality=100)
    np.testing.assert_allclose(decoded(cmyk), np.broadcast_to([255, 0, 0], (4, 4, 3)), atol=4)
    animated = tmp_path / "animated.gif"
    frames = [PIL.Image.new("RGB", (4, 4), color) for color in ("blue", "green")]
    frames[0].save(animated, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decoded(animated), np.broadcast_to([0, 0, 255], (4, 4, 3)))
    rotated = tmp_path / "rotated.jpg"
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    picture(size=(12, 8)).save(rotated, exif=exif)
    assert decoded(rotated).shape == (12, 8, 3)


def test_ordinary_jpegs_keep_their_bytes(tmp_path):
    path = tmp_path / "a.jpg"
    picture().save(path)
    assert folder.encode(path) == path.read_bytes()


def break_one(root, how):
    path = root / "cat" / "0.jpg"
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"no image", "truncated": content[: len(content) // 2]}[how])
    return path


@pytest.mark.parametrize("how", ["empty", "text", "truncated"])
def test_a_broken_file_is_named(tmp_path, tiny, how, capsys):
    path = break_one(fill(tmp_path / "images"), how)
    config = tiny(dataset=f"folder:{tmp_path / 'images'}", data_dir=str(tmp_path / "data"), num_classes=2)
    config.batch_size, config.channels = 8, 3
    with pytest.raises(UserError, match=str(path)):
        pipeline.open(config)
    config.bad_images = "skip"
    data = pipeline.open(config)
    total = sum(data.num_examples(split) for split in ("train", "validation", "test"))
    assert total == 59
    output = capsys.readouterr()
    assert str(path) in output.out + output.err


def test_batches_of_a_folder(tmp_path, tiny):
    root = fill(tmp_path / "images")
    config = tiny(dataset=f"folder:{root}", data_dir=str(tmp_path / "data"), num_classes=2)
    config.batch_size, config.eval_batch_size = 8, 16
    config.channels = 3
    config.augment.shift = config.augment.rotation = config.augment.zoom = 0.0
    data = pipeline.open(config)
    batch = next(data.train_batches())
    assert batch["image"].shape == (8, 16, 16, 3)
    np.testing.assert_allclose(batch["image"][:, 8, 8, 0], 40 + 100 * batch["label"], atol=3)
    seen = sum(int(batch["mask"].sum()) for batch in data.eval_batches("test"))
    assert seen == data.num_examples("test")
    assert data.class_names == ["cat", "dog"]


def test_mistakes(tmp_path, tiny):
    with pytest.raises(UserError, match="does not exist"):
        listing.find(tmp_path / "nothing", "stop")
    with pytest.raises(UserError, match="no class folders"):
        listing.find(tmp_path, "stop")
    root = fill(tmp_path / "images")
    config = tiny(dataset=f"folder:{root}", data_dir=str(tmp_path / "data"), num_classes=10)
    with pytest.raises(UserError, match="num_classes is 10, but .* has 2"):
        pipeline.open(config)
    with pytest.raises(UserError, match="names no folder, expected folder:/path/to/images"):
        pipeline.open(tiny(dataset="folder:"))


@pytest.fixture
def listings(monkeypatch):
    """How often a folder was listed: a list that grows."""
    calls, original = [], listing.find
    monkeypatch.setattr(listing, "find", lambda *args: calls.append(args) or original(*args))
    return calls


CONFIG = """
import conftest

def get_config():
    config = conftest.tiny_config(dataset="folder:{root}/images", data_dir="{root}/data", num_epochs=2.0)
    config.update(num_classes=0, batch_size=16, eval_batch_size=16, channels=3, eval_every_epochs=1.0)
    return config
"""


@pytest.fixture
def config_file(tmp_path):
    """That of a run on the folder `images` beside it."""
    fill(tmp_path / "images")
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(root=tmp_path))
    return path


@pytest.fixture
def begun(config_file, make_run):
    """A run of that config, with a checkpoint as if it had been trained: `begun(*argv)` runs a verb on it."""
    workdir = config_file.parent / "run"
    config = parsing.read_config([f"--config={config_file}"])
    source = Source.find(config)
    data_record.write(source, str(workdir))
    make_run(source.completed(config), workdir)

    def run(verb, *argv):
        given = [f"--config={config_file}"] if verb == "train" else []
        return cli.main([verb, *given, f"--workdir={workdir}", *argv])

    return run


def added(root):
    picture(99).save(root / "cat" / "new.jpg")


def removed(root):
    (root / "dog" / "7.jpg").unlink()


def replaced(root):
    picture(7).save(root / "cat" / "3.jpg")


CHANGES = {added: "1 added (cat/new.jpg)", removed: "1 removed (dog/7.jpg)", replaced: "1 changed (cat/3.jpg)"}


def test_what_a_run_records(begun, tmp_path):
    record = json.loads((tmp_path / "run" / "data.json").read_text())
    assert record["dataset"] == f"folder:{tmp_path}/images" and record["classes"] == ["cat", "dog"]
    assert sum(record["splits"].values()) == len(record["files"]) == 60
    path = tmp_path / "images" / "cat" / "3.jpg"
    size, mtime, digest = record["files"]["cat/3.jpg"]
    assert (size, mtime, digest) == (*digests.stat_of(path), digests.digest_of(path))
    # A copy of the folder is the same data, whenever it was made; what was prepared of it may be another file.
    copy = shutil.copytree(tmp_path / "images", tmp_path / "copy" / "images", copy_function=shutil.copyfile)
    other = Source(f"folder:{copy}", str(tmp_path / "data"), "stop")
    assert other.fingerprint == record["fingerprint"]
    assert digests.changes(other.folder.root, other.folder.stats, record["files"]) == ([], [], [])
    replaced(copy)
    assert Source(f"folder:{copy}", str(tmp_path / "data"), "stop").fingerprint != record["fingerprint"]


def test_a_file_added_during_a_run_changes_nothing(config_file, tmp_path, listings):
    data = pipeline.open(parsing.read_config([f"--config={config_file}"]))
    before = list(data.eval_batches("train+validation+test"))
    for change in CHANGES:
        change(tmp_path / "images")
    after = list(data.eval_batches("train+validation+test"))
    for batch, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(batch["image"], other["image"])
    assert sum(data.num_examples(split) for split in ("train", "validation", "test")) == 60
    assert len(listings) == 1


def test_a_file_that_changes_before_it_is_read_is_told(config_file, tmp_path):
    config = parsing.read_config([f"--config={config_file}"])
    source = Source.find(config)
    replaced(tmp_path / "images")
    with pytest.raises(UserError, match="cat/3.jpg changed after its folder was listed; run the command again"):
        pipeline.open(config, source)
    prepared = Source.find(config).builder.data_path
    removed(tmp_path / "images")
    assert Source.find(config).builder.data_path != prepared  # what was prepared of another state is not used


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_go_on_with_other_images(begun, tmp_path, capsys, change):
    change(tmp_path / "images")
    assert begun("train") == 2
    [line] = capsys.readouterr().err.splitlines()
    told = f"folder:{tmp_path}/images has changed since the run in {tmp_path}/run began: {CHANGES[change]}"
    assert line == f"basisnet: {told}; use another --workdir, or go on with --changed_data"
    workdir, source = str(tmp_path / "run"), Source.find(runs.load_config(str(tmp_path / "run")))
    assert data_record.check(source, workdir, changed_data=True)  # goes on, and is to record what there is now


def test_what_does_not_matter(begun, tmp_path):
    """A file touched, one of another kind, and a workdir of an earlier commit."""
    root, workdir = tmp_path / "images", str(tmp_path / "run")
    os.utime(root / "cat" / "3.jpg", (1, 1))
    (root / "cat" / "notes.txt").write_text("no image")
    config = runs.load_config(workdir)
    assert not data_record.check(Source.find(config), workdir, changed_data=False)
    for change in CHANGES:
        change(root)
    pathlib.Path(workdir, "data.json").unlink()
    assert data_record.check(Source.find(config), workdir, changed_data=False)  # goes on, and from now on has a record


@pytest.mark.parametrize("recorded", [True, False])
def test_other_classes_are_refused(begun, tmp_path, capsys, recorded):
    """Also in a workdir of an earlier commit, which has the names of the classes in `classes.json` alone."""
    workdir = tmp_path / "run"
    runs.write_classes(str(workdir), ["cat", "dog"])
    if not recorded:
        (workdir / "data.json").unlink()
    for name in ("evaluation.json", "early_exit.json", "report.html"):
        (workdir / name).write_text("kept")
    (tmp_path / "images" / "cat").rename(tmp_path / "images" / "kitten")
    expected = f"has class 'dog' as label 0, expected 'cat', with which the run in {tmp_path}/run began"
    before = {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    for verb, *argv in (
        ("evaluate", "--threshold=0.5"),
        ("calibrate", "--max_drop=0.01"),
        ("report",),
        ("export", "--format=safetensors", f"--output={tmp_path}/export", "--threshold=0.5"),
        ("export", "--format=specialist", f"--output={tmp_path}/export", "--class=0"),
        ("train", "--changed_data"),
    ):
        assert begun(verb, *argv) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert expected in line, verb
    assert before == {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    assert not (tmp_path / "export").exists()
    shutil.copytree(tmp_path / "images" / "kitten", tmp_path / "images" / "cat")
    assert begun("train") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"/images has 3 classes, expected 2, with which the run in {tmp_path}/run began" in line


@pytest.mark.parametrize("recorded", [True, False])
def test_names_for_display_may_be_edited(begun, tmp_path, capsys, recorded):
    """Without a record nobody knows whether a name was edited or a class replaced: a line says so."""
    workdir = tmp_path / "run"
    runs.write_classes(str(workdir), ["a cat", "the dog"])
    if not recorded:
        (workdir / "data.json").unlink()
    source = Source.find(runs.load_config(str(workdir)))
    data_record.check_classes(source, str(workdir))
    lines = capsys.readouterr().err.splitlines()
    told = "has no record of its classes; label 0 is 'a cat' in its classes.json and 'cat' in the data"
    assert [told in line for line in lines] == [True] * (not recorded)
    (workdir / "classes.json").unlink()
    data_record.check_classes(source, str(workdir))
    assert capsys.readouterr().err == ""


def test_a_teacher_of_other_classes_is_refused(begun, config_file, tmp_path, capsys):
    shutil.move(tmp_path / "run", tmp_path / "teacher")
    (tmp_path / "images" / "cat").rename(tmp_path / "images" / "kitten")
    assert begun("train", f"--config.distillation.teacher={tmp_path}/teacher") == 2
    assert "expected 'cat', with which the run in" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.end_to_end
@pytest.mark.slow
def test_a_run_and_its_next_lives_on_changing_images(config_file, tmp_path, capsys, monkeypatch, listings):
    workdir, root = tmp_path / "run", tmp_path / "images"
    train = ["train", f"--config={config_file}", f"--workdir={workdir}"]
    original, seen = pipeline.Dataset.eval_batches, []

    def eval_batches(data, split):
        """Before the second validation there are three times as many images."""
        seen.append(split)
        if len(seen) == 2:
            for label in ("cat", "dog"):
                for i in range(60):
                    picture(200).save(root / label / f"new{i}.jpg")
        return original(data, split)

    monkeypatch.setattr(pipeline.Dataset, "eval_batches", eval_batches)
    assert cli.main(train) == 0
    assert seen[:2] == ["validation", "validation"] and len(listings) == 1
    record = json.loads((workdir / "data.json").read_text())
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    validated = [row["num_examples"] for row in rows if row["split"] == "validation"]
    assert validated == [record["splits"]["validation"]] * 2 and len(record["files"]) == 60
    assert json.loads((workdir / "evaluation.json").read_text())["num_examples"] == record["splits"]["test"]

    capsys.readouterr()
    assert cli.main(["evaluate", f"--workdir={workdir}"]) == 0
    told = f"has changed since the run in {workdir} began: 120 added (cat/new0.jpg)"
    assert sum(told in line for line in capsys.readouterr().err.splitlines()) == 1
    assert cli.main(train) == 2 and told in capsys.readouterr().err
    assert json.loads((workdir / "data.json").read_text()) == record
    assert cli.main([*train, "--changed_data"]) == 0
    assert len(json.loads((workdir / "data.json").read_text())["files"]) == 180
    capsys.readouterr()
    assert cli.main(["evaluate", f"--workdir={workdir}"]) == 0
    assert "has changed" not in capsys.readouterr().err
