"""`basisnet predict`: what evaluation would answer, by the stage that the threshold says, at that stage's cost."""

import csv
import errno
import io
import json
import os
import pathlib

import conftest
import jax
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from basisnet_jax import basis, basisnet, cli, early_exit, madds, preprocess
from basisnet_jax.data import decoding, folder, pipeline
from basisnet_jax.data.source import Source
from basisnet_jax.errors import UserError
from basisnet_jax.inference import predict as predict_lib
from basisnet_jax.workdir import runs

STEP = 3  # of the fixture `make_run`


@pytest.fixture(scope="module")
def config(tiny, data_dir):
    return tiny(data_dir=data_dir)


@pytest.fixture(scope="module")
def digits(config, tmp_path_factory):
    """Files of the first digits of the test split as the data set has them, and their pixels as evaluation has them."""
    examples = tfds.as_numpy(Source.find(config).builder.as_dataset(split="test"))
    root = tmp_path_factory.mktemp("digits")
    paths = [str(root / f"{i}.png") for i in range(8)]
    for path, example in zip(paths, examples, strict=False):
        PIL.Image.fromarray(example["image"][..., 0]).save(path)
    return paths, next(pipeline.open(config).eval_batches("test"))["image"][: len(paths)]


@pytest.fixture(scope="module")
def workdir(make_run, config, tmp_path_factory):
    return make_run(config, tmp_path_factory.mktemp("basisnet"))


@pytest.fixture(scope="module")
def static_workdir(make_run, tiny, tmp_path_factory):
    """A plain network on three channels."""
    return make_run(tiny(model="static", channels=3, eval_crop=0.8), tmp_path_factory.mktemp("static"))


@pytest.fixture
def predict(capsys):
    """`predict(workdir, *argv)`: the objects that the command prints with --json, and the lines on stderr."""

    def run(workdir, *argv, code=0):
        assert cli.main(["predict", f"--workdir={workdir}", "--json", *map(str, argv)]) == code
        out, err = capsys.readouterr()
        return [json.loads(line) for line in out.splitlines()], err.splitlines()

    return run


def by_evaluation(workdir, images):
    """[(label, confidence)] of the preview and of the final head for images as evaluation has them, in one batch."""
    run = runs.load(workdir)
    evaluated = jax.jit(run.functions.evaluate)
    outputs = evaluated(run.params, run.batch_stats, run.preprocess.normalize(images))
    heads = [np.asarray(logits) for logits in (outputs.preview_logits, outputs.logits) if logits is not None]
    return [(np.argmax(logits, -1), np.asarray(early_exit.confidence(logits))) for logits in heads]


def costs(workdir):
    items = runs.load(workdir).items
    return {"preview": madds.preview_only(items), "specialist": madds.total(items), "network": madds.total(items)}


def test_a_file_is_seen_as_evaluation_sees_it(config, digits):
    paths, images = digits
    seen = [pipeline.evaluation_image(preprocess.of(config), folder.encode(pathlib.Path(path))) for path in paths]
    np.testing.assert_array_equal(seen, images)


@pytest.mark.slow
@pytest.mark.parametrize(("threshold", "stage"), [(0, "preview"), (1.1, "specialist")])
def test_the_answer_is_that_of_evaluation(predict, workdir, digits, threshold, stage):
    paths, images = digits
    rows, _ = predict(workdir, *paths, f"--threshold={threshold}")
    labels, confidences = by_evaluation(workdir, images)[stage == "specialist"]
    assert len(set(labels)) > 1 and np.ptp(confidences) > 0.01
    assert [list(row) for row in rows] == [["file", "label", "confidence", "stage", "madds"]] * len(paths)
    assert [row["file"] for row in rows] == paths
    assert [row["label"] for row in rows] == [str(label) for label in labels]
    np.testing.assert_allclose([row["confidence"] for row in rows], confidences, rtol=1e-4)
    assert [(row["stage"], row["madds"]) for row in rows] == [(stage, costs(workdir)[stage])] * len(paths)


@pytest.mark.slow
def test_the_specialist_runs_only_for_images_below_the_threshold(predict, workdir, digits, monkeypatch):
    """Runs, on the device: that it is traced, as counting its cost does, is nothing."""
    paths, images = digits
    executions = []
    stage = basisnet.BasisNet.specialist_stage

    def recorded(*args):
        jax.debug.callback(lambda: executions.append(1))
        return stage(*args)

    (_, first), (_, final) = by_evaluation(workdir, images)
    monkeypatch.setattr(basisnet.BasisNet, "specialist_stage", recorded)
    between = float(np.sort(first)[3:5].mean())  # two images' confidences
    for threshold in (0.0, between):
        executions.clear()
        rows, _ = predict(workdir, f"--threshold={threshold}", *paths)
        jax.effects_barrier()
        stops = first >= threshold
        assert [row["stage"] for row in rows] == ["preview" if stop else "specialist" for stop in stops]
        np.testing.assert_allclose([row["confidence"] for row in rows], np.where(stops, first, final), rtol=1e-4)
        assert len(executions) == (threshold > 0)  # once, for all that are undecided
    assert executions


@pytest.mark.slow
def test_the_threshold_is_the_one_that_evaluated_the_same_step(predict, workdir, digits):
    paths, _ = digits
    path = pathlib.Path(workdir, "evaluation.json")

    def stages(*argv, told=()):
        rows, err = predict(workdir, *paths[:2], *argv)
        assert err == list(told)
        return {row["stage"] for row in rows}

    unknown = [f"basisnet: no threshold is known for step {STEP}: no image stops at the preview"]
    assert stages(told=unknown) == {"specialist"}  # of no evaluation
    try:
        path.write_text(json.dumps({"step": STEP, "early_termination": {"threshold": 0.0}}))
        assert stages() == {"preview"}
        assert stages("--threshold=1.1") == {"specialist"}
        path.write_text(json.dumps({"step": STEP + 1, "early_termination": {"threshold": 0.0}}))
        assert stages(told=unknown) == {"specialist"}
        path.write_text("{")
        _, err = predict(workdir, *paths, code=2)
        assert len(err) == 1 and str(path) in err[0]
    finally:
        path.unlink()


def test_files_that_cannot_be_read_are_named_and_the_others_answered(predict, workdir, digits, tmp_path):
    paths, _ = digits
    text, truncated, empty = tmp_path / "text.png", tmp_path / "truncated.jpg", tmp_path / "empty"
    empty.mkdir()
    text.write_text("no image")
    PIL.Image.new("RGB", (64, 64), "red").save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:400])
    broken = [str(path) for path in (text, truncated, tmp_path / "missing.png", empty)]
    rows, err = predict(workdir, broken[0], paths[0], *broken[1:], paths[1], "--threshold=1", code=2)
    assert [row["file"] for row in rows] == paths[:2]
    assert len(err) == len(broken) + 1
    for line, path in zip(err, broken, strict=False):
        assert line.startswith(f"basisnet: {path} ")
    assert err[-1] == "basisnet: 4 of 6 files could not be read"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["workdir", "static_workdir"])
def test_answers_in_the_order_of_the_input_whatever_the_batches(predict, digits, request, tmp_path, monkeypatch, kind):
    """Of batches of three: with files that cannot be read between them, and stages that take turns."""
    paths, _ = digits
    workdir = request.getfixturevalue(kind)
    config = runs.load_config(workdir)
    images = np.stack(
        [pipeline.evaluation_image(preprocess.of(config), pathlib.Path(path).read_bytes()) for path in paths]
    )
    heads = by_evaluation(workdir, images)
    threshold = float(np.median(heads[0][1]))
    monkeypatch.setattr(predict_lib, "BATCH_SIZE", 3)
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    given = [paths[0], broken, *paths[1:5], broken, *paths[5:]]
    rows, err = predict(workdir, *given, f"--threshold={threshold}", code=2)
    assert [row["file"] for row in rows] == paths and len(err) == 3
    stops = np.array([row["stage"] == "preview" for row in rows])
    if kind == "workdir":
        np.testing.assert_array_equal(stops, heads[0][1] >= threshold)
    expected = [(heads[0] if stop else heads[-1]) for stop in stops]
    assert [row["label"] for row in rows] == [str(labels[i]) for i, (labels, _) in enumerate(expected)]
    confidences = [confidences[i] for i, (_, confidences) in enumerate(expected)]
    np.testing.assert_allclose([row["confidence"] for row in rows], confidences, rtol=1e-4)
    cost = costs(workdir)
    assert [row["madds"] for row in rows] == [cost[row["stage"]] for row in rows]


def stdin(content):
    return io.TextIOWrapper(io.BytesIO(content))


def test_folders_and_a_list_on_stdin(predict, workdir, digits, tmp_path, monkeypatch):
    paths, _ = digits
    (tmp_path / "a").mkdir()
    for name in ("b.png", "a/z.PNG", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(pathlib.Path(paths[0]).read_bytes())
    monkeypatch.setattr("sys.stdin", stdin(f"{paths[1]}\n\n{tmp_path}\n".encode()))
    rows, _ = predict(workdir, paths[2], "-", paths[0])
    inside = [str(tmp_path / name) for name in ("a/z.PNG", "b.png")]
    assert [row["file"] for row in rows] == [paths[2], paths[1], *inside, paths[0]]
    assert len({(row["label"], round(row["confidence"], 5)) for row in rows[2:]}) == 1  # the same image thrice
    monkeypatch.setattr("sys.stdin", stdin(b""))
    rows, err = predict(workdir, "-", code=2)
    assert rows == [] and len(err) == 1 and "no images" in err[0]


ODD_NAME = os.fsdecode(b"caf\xe9.png")  # no UTF-8


@pytest.mark.parametrize("how", ["argument", "folder", "stdin"])
def test_a_name_that_is_no_utf8(predict, static_workdir, digits, tmp_path, monkeypatch, capsys, how):
    path = tmp_path / ODD_NAME
    path.write_bytes(pathlib.Path(digits[0][0]).read_bytes())
    argument = {"argument": str(path), "folder": str(tmp_path), "stdin": "-"}[how]

    def given():
        monkeypatch.setattr("sys.stdin", stdin(os.fsencode(path) + b"\n"))
        return argument

    [expected], _ = predict(static_workdir, digits[0][0])
    [row], _ = predict(static_workdir, given())
    assert row == {**expected, "file": str(path)}  # of JSON the name is exact
    shown = rf"{tmp_path}/caf\udce9.png"
    for argv in (["--csv"], []):
        assert cli.main(["predict", f"--workdir={static_workdir}", *argv, given()]) == 0
        out, err = capsys.readouterr()
        assert out.splitlines()[1].startswith(shown) and err == ""
    path.write_bytes(b"no image")
    rows, err = predict(static_workdir, given(), digits[0][0], code=2)
    assert [row["file"] for row in rows] == [digits[0][0]]
    assert err[-2] == f"basisnet: {shown} is not a readable image (unknown format)"


def broken_jpeg(path):
    """Pillow reads it, TensorFlow does not."""
    photo = np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8)
    PIL.Image.fromarray(photo).save(path, quality=95)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) // 2))


BAD = {
    "a link to nothing": (lambda path: path.symlink_to("gone"), "No such file or directory"),
    "a link to itself": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "an empty folder": (lambda path: path.mkdir(), "a folder without images"),
    "zeros in a JPEG": (broken_jpeg, "jpeg::Uncompress failed. Invalid JPEG data or crop window."),
    "no image": (lambda path: path.write_bytes(b"no image"), "unknown format"),
    "nothing": (lambda path: None, "No such file or directory"),
}


@pytest.mark.parametrize("how", BAD)
def test_no_file_is_lost_behind_a_bad_one(predict, workdir, digits, tmp_path, how):
    paths, _ = digits
    make, reason = BAD[how]
    bad = tmp_path / "a\nb.jpg"
    make(bad)
    rows, err = predict(workdir, paths[0], bad, *paths[1:], code=2)
    assert [row["file"] for row in rows] == paths
    assert err[-2:] == [
        rf"basisnet: {tmp_path}/a\nb.jpg is not a readable image ({reason})",
        f"basisnet: 1 of {len(paths) + 1} files could not be read",
    ]


@pytest.mark.odd("folder")
def test_damaged_jpegs_are_named_and_answered(workdir, digits, tmp_path, capfd, record_property):
    """Only these, in the process's descriptor 2: libjpeg itself does not know the name."""
    paths, _ = digits
    whole, damaged, broken = (tmp_path / name for name in ("whole.jpg", "a\nb.jpg", "broken.jpg"))
    PIL.Image.new("RGB", (64, 48), "red").save(whole)
    content = whole.read_bytes()
    damaged.write_bytes(content[:-2] + bytes(12) + content[-2:])
    broken.write_bytes(content[:-9])
    given = [str(path) for path in (*paths, whole, damaged, broken)]
    code = cli.main(["predict", f"--workdir={workdir}", "--json", "--threshold=1", *given])
    out, err = capfd.readouterr()
    conftest.record_told(record_property, code, err)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 2 and [row["file"] for row in rows] == given[:-1]
    assert rows[-1]["confidence"] == rows[-2]["confidence"]  # the damage lies behind the pixels
    named, unreadable, _ = err.splitlines()
    assert named.startswith(rf"basisnet: {tmp_path}/a\nb.jpg is damaged, but decodes (Corrupt JPEG data: ")
    assert unreadable.startswith(f"basisnet: {broken} is not a readable image (jpeg::Uncompress failed")


def test_folders_that_may_not_be_listed_and_links(predict, workdir, digits, tmp_path, monkeypatch):
    content = pathlib.Path(digits[0][0]).read_bytes()
    for name in ("in/a/1.png", "in/b/2.png", "in/z.png", "beside/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "in" / "more").symlink_to("../beside")
    (tmp_path / "in" / "up").symlink_to("..")
    os.mkfifo(tmp_path / "in" / "pipe.png")

    def denying(function):
        def denied(path="."):
            if str(path).endswith("/in/b"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return function(path)

        return denied

    for name in ("scandir", "listdir"):  # root, who may run this, may list all
        monkeypatch.setattr(os, name, denying(getattr(os, name)))
    rows, err = predict(workdir, tmp_path / "in", code=2)
    assert [row["file"] for row in rows] == [f"{tmp_path}/in/{name}" for name in ("a/1.png", "more/3.png", "z.png")]
    assert err[-2:] == [
        f"basisnet: {tmp_path}/in/b is not a readable image (Permission denied)",
        "basisnet: 1 of 4 files could not be read",
    ]


def test_a_single_image_runs_as_a_plain_network(predict, workdir, digits, monkeypatch):
    paths, images = digits
    _, (labels, confidences) = by_evaluation(workdir, images[:1])
    synthesize, mixtures = basis.synthesize, []
    monkeypatch.setattr(basis, "synthesize", lambda *args: mixtures.append(args[1].shape) or synthesize(*args))
    [row], _ = predict(workdir, paths[0], "--threshold=1.1")
    assert len(mixtures) == 1 and len(mixtures[0]) == 2
    assert row["stage"] == "specialist" and row["label"] == str(labels[0])
    assert row["confidence"] == pytest.approx(confidences[0], rel=1e-4)


def test_csv(predict, workdir, digits, capsys):
    paths, _ = digits
    rows, _ = predict(workdir, *paths)
    assert cli.main(["predict", f"--workdir={workdir}", "--csv", *paths]) == 0
    for read, row in zip(csv.DictReader(io.StringIO(capsys.readouterr().out)), rows, strict=True):
        assert {**read, "confidence": float(read["confidence"]), "madds": int(read["madds"])} == row


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0, 1.1])
def test_the_best_classes(predict, workdir, digits, capsys, threshold):
    paths, images = digits
    run = runs.load(workdir)
    outputs = run.functions.evaluate(run.params, run.batch_stats, run.preprocess.normalize(images))
    expected = np.asarray(jax.nn.softmax(outputs.logits if threshold else outputs.preview_logits))
    flag = f"--threshold={threshold}"
    plain, _ = predict(workdir, *paths, flag)
    rows, _ = predict(workdir, *paths, flag, "--top=3")
    assert [{name: row[name] for name in row if name != "top"} for row in rows] == plain
    for row, probabilities in zip(rows, expected, strict=True):
        order = np.argsort(-probabilities)[:3]
        assert [of["label"] for of in row["top"]] == [str(label) for label in order]
        np.testing.assert_allclose([of["probability"] for of in row["top"]], probabilities[order], rtol=1e-4)
        assert row["top"][0] == {"label": row["label"], "probability": row["confidence"]}
    everything, _ = predict(workdir, paths[0], flag, "--top=99")
    assert len(everything[0]["top"]) == 10
    assert sum(of["probability"] for of in everything[0]["top"]) == pytest.approx(1, abs=1e-5)
    assert cli.main(["predict", f"--workdir={workdir}", "--csv", "--top=2", flag, *paths]) == 0
    for read, row in zip(csv.DictReader(io.StringIO(capsys.readouterr().out)), rows, strict=True):
        told = [(read[f"label_{k}"], float(read[f"probability_{k}"])) for k in (1, 2)]
        assert told == [(of["label"], of["probability"]) for of in row["top"][:2]] and len(read) == 9
    assert cli.main(["predict", f"--workdir={workdir}", "--top=2", flag, paths[0]]) == 0
    best = ", ".join(f"{of['label']} {of['probability']:.4f}" for of in rows[0]["top"][:2])
    assert capsys.readouterr().out.splitlines()[1].endswith(f"M  {best}")


def test_odd_files_into_three_channels(predict, static_workdir, tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (24, 40), np.uint8)
    images = {
        "grey.png": PIL.Image.fromarray(photo),
        "16 bits.png": PIL.Image.fromarray(photo.astype(np.uint16) * 257),
        "opaque.png": PIL.Image.fromarray(np.stack([photo] * 3 + [np.full_like(photo, 255)], -1)),
        "rgb.png": PIL.Image.fromarray(np.stack([photo] * 3, -1)),
    }
    for name, image in images.items():
        image.save(tmp_path / name)
    rows, _ = predict(static_workdir, *(tmp_path / name for name in images))
    # The square at the centre, 0.8 of the shorter side, which is round(19.2) = 19 pixels.
    config = runs.load_config(static_workdir)
    centre = np.stack([photo[2:21, 10:29]] * 3, -1)
    pixels = decoding.to_uint8(decoding.resize(preprocess.of(config), centre)).numpy()
    (labels, confidences), *_ = by_evaluation(static_workdir, pixels[None])
    assert {row["label"] for row in rows} == {str(labels[0])}
    np.testing.assert_allclose([row["confidence"] for row in rows], confidences[0], rtol=1e-4)
    assert {(row["stage"], row["madds"]) for row in rows} == {("network", costs(static_workdir)["network"])}


def test_names_of_the_classes(predict, static_workdir, digits):
    paths, _ = digits
    path = pathlib.Path(static_workdir, "classes.json")
    numbers = [row["label"] for row in predict(static_workdir, *paths)[0]]
    names = [f"digit {i}" for i in range(10)]
    try:
        runs.write_classes(static_workdir, names)
        runs.write_classes(static_workdir, names[::-1])  # what is there stays
        assert [row["label"] for row in predict(static_workdir, *paths)[0]] == [f"digit {i}" for i in numbers]
        for wrong in (names[:9], [1] * 10, dict.fromkeys(names), "0123456789"):
            path.write_text(json.dumps(wrong))
            with pytest.raises(UserError, match=f"{path} .* 10 names"):
                runs.load_classes(static_workdir, 10)
        path.write_text("[")
        _, err = predict(static_workdir, *paths, code=2)
        assert len(err) == 1 and str(path) in err[0]
    finally:
        path.unlink()


def test_table(predict, static_workdir, digits, capsys):
    paths, _ = digits
    rows, _ = predict(static_workdir, *paths)
    path = pathlib.Path(static_workdir, "classes.json")
    path.write_text(json.dumps([f"the digit {i}" for i in range(10)]))
    try:
        assert cli.main(["predict", paths[0], f"--workdir={static_workdir}", *paths[1:]]) == 0
    finally:
        path.unlink()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["file", "confidence", "stage", "MAdds", "label"]
    for line, row in zip(lines[1:], rows, strict=True):
        numbers = f"{row['confidence']:.4f}", row["stage"], f"{row['madds'] / 1e6:.2f}M"
        assert line.split(maxsplit=4) == [row["file"], *numbers, f"the digit {row['label']}"]
    for column in ("stage", "label"):
        place = lines[0].index(column)
        assert all(line[place - 2 : place] == "  " and line[place] != " " for line in lines)


def test_no_images(predict, workdir):
    rows, err = predict(workdir, code=2)
    assert rows == [] and len(err) == 1 and "no images" in err[0]
