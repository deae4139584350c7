"""The report: numbers as of evaluation and calibration, nothing missing or fetched, no name that becomes HTML, and a
browser that shows it without complaint on a phone and on a desk."""

import base64
import csv
import html
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from basisnet_jax import cli
from basisnet_jax.inference import by_class
from basisnet_jax.report import measure, page, sweep

NAMES = ["<b>zero</b>", "$1$", *"23456789"]


def shown(workdir, capsys, *argv):
    """The page that the verb writes."""
    assert cli.main(["report", f"--workdir={workdir}", *argv]) == 0
    path = capsys.readouterr().out.strip()
    return pathlib.Path(path).read_text()


def refused(capsys, *argv):
    """The one line in which the verb fails."""
    assert cli.main(["report", *argv]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and out == ""
    return err


def text_of(content):
    return html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", content, flags=re.S)))


def pictures(content):
    """The SVG of every drawing, as text."""
    return [base64.b64decode(found).decode() for found in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", content)]


def sections(content):
    return re.findall(r"<h2>(.*?)</h2>", content)


LOG = [
    {
        "step": 2,
        "split": "train",
        "loss": 3.0,
        "final_loss": 2.0,
        "preview_loss": 1.0,
        "top1": 0.1,
        "preview_top1": 0.2,
    },
    {"step": 3, "split": "validation", "loss": 1.5, "preview_loss": 1.2, "top1": 0.3, "preview_top1": 0.4},
]


@pytest.fixture(scope="module")
def workdir(make_run, tiny, data_dir, tmp_path_factory):
    workdir = pathlib.Path(make_run(tiny(data_dir=data_dir), tmp_path_factory.mktemp("run")))
    (workdir / "classes.json").write_text(json.dumps(NAMES))
    unfinished = '{"step": 4, "split": "tr'  # the training writes at this moment
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LOG) + unfinished)
    return str(workdir)


@pytest.fixture(scope="module")
def calibrated(workdir, tmp_path_factory):
    """A copy of the run, evaluated and calibrated, with its evaluation.json and early_exit.json."""
    copy = tmp_path_factory.mktemp("calibrated") / "run"
    shutil.copytree(workdir, copy)
    assert cli.main(["calibrate", f"--workdir={copy}", "--max_drop=0.05"]) == 0
    assert cli.main(["evaluate", f"--workdir={copy}"]) == 0
    return str(copy), *(json.loads((copy / name).read_text()) for name in ("evaluation.json", "early_exit.json"))


@pytest.mark.slow
def test_the_numbers_are_those_of_evaluation_and_calibration(calibrated, capsys):
    workdir, evaluation, calibration = calibrated
    content = shown(workdir, capsys)
    text, early = text_of(content), evaluation["early_termination"]
    for name in ("top1", "preview_top1", "top5", "preview_top5", "balanced_accuracy", "preview_balanced_accuracy"):
        assert page.percent(evaluation[name]) in text
    assert page.percent(evaluation["majority_top1"]) in text and page.percent(early["balanced_accuracy"]) in text
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", content)]
    for of in evaluation["classes"]:
        shares = (of[f"{head}{name}"] for head in by_class.HEADS.values() for name in ("precision", "recall"))
        cells = ["-" if share is None else page.percent(share, 1) for share in shares]
        assert [html.escape(of["class"]), f"{of['count']}", *cells] in rows
    for name in ("loss", "preview_loss"):
        assert f"{evaluation[name]:.4f}" in text
    for cost in (evaluation["madds"], evaluation["preview_madds"], early["mean_madds"]):
        assert page.millions(cost) in text
    assert "step 3" in text and f"test split, {evaluation['num_examples']} images" in text
    assert f"≥ {calibration['threshold']:.4f}, calibrated" in text and "basisnet calibrate" not in text
    point = f"chosen: {100 * early['top1']:.1f} % at {early['mean_madds'] / 1e6:.2f}M, {early['share']:.0%} stop"
    assert sum(point in svg for svg in pictures(content)) == 1
    assert f"{page.percent(early['top1'])} at {page.millions(early['mean_madds'])}" in content
    assert evaluation["provenance"]["commit"] is None or evaluation["provenance"]["commit"] in text
    galleries = dict(re.findall(r"<h3>(.*?): ([\d,]+)</h3>", content))
    assert len(galleries) == 4 and sum(map(int, galleries.values())) == evaluation["num_examples"]
    stopped = sum(int(count) for name, count in galleries.items() if name.startswith("Stopped"))
    assert stopped == round(early["share"] * evaluation["num_examples"])


@pytest.mark.slow
def test_one_page_with_all_in_it(workdir, capsys):
    content = shown(workdir, capsys, "--images=50")
    assert set(re.findall(r'(?:src|srcset|data|action)="([^":]+:)', content)) == {"data:"}
    assert all(target.startswith(("#", "data:")) for target in re.findall(r'href="([^"]*)"', content))
    everything = content + "".join(pictures(content))
    assert "<script" not in everything and "@import" not in everything and "url(http" not in everything
    fetched = re.findall(r"https?://[^\"'\s<>]+", content)
    assert not fetched
    assert all(
        "href" not in tag or '="#' in tag or '="data:' in tag for tag in re.findall(r"<[^>]*href[^>]*>", everything)
    )
    images = re.findall(r"<img[^>]*>", content)
    assert images and all(re.search(r'alt="[^"]+"', image) for image in images)
    assert content.count("<figcaption>") == content.count("<figure>") > len(images)
    assert len(content) < 3e6
    anchors = re.findall(r'href="#([^"]+)"', content)
    assert anchors and all(f'<section id="{anchor}">' in content for anchor in anchors)


@pytest.mark.slow
def test_names_stay_text(workdir, capsys):
    content = shown(workdir, capsys)
    assert "<b>" not in content and html.escape(NAMES[0]) in content
    drawings = pictures(content)
    assert any(html.escape(NAMES[0]) in svg for svg in drawings) and not any("<b>" in svg for svg in drawings)
    assert any("$1$" in svg for svg in drawings)


@pytest.mark.slow
def test_what_is_not_there_is_left_out_or_told(workdir, make_run, tiny, data_dir, tmp_path, capsys):
    uncalibrated = shown(workdir, capsys)
    assert f"basisnet calibrate --workdir={workdir} --max_drop=0.003" in uncalibrated
    assert "Stopped early" not in uncalibrated and not any("chosen" in svg for svg in pictures(uncalibrated))
    assert "not finished: its newest checkpoint is of step 3 of " in uncalibrated
    assert "Learning curves" in sections(uncalibrated) and "Coefficients" in sections(uncalibrated)

    static = shown(make_run(tiny(model="static", data_dir=data_dir), tmp_path / "static"), capsys)
    assert sections(static) == ["Results and cost", "Classes", "Images", "Configuration", "How to make this page again"]
    assert "preview" not in text_of(static.split("<h2>Configuration")[0])

    shared = tiny(data_dir=data_dir, **{"coefficients.shared": True})
    content = shown(make_run(shared, tmp_path / "shared", step=0), capsys)
    assert content.count("Mean coefficients of layer") == 1 and "all layers" in content
    assert "imported" in content

    blocks = {"basis.layers": "stages/.*/(expand|depthwise|project)/conv", "coefficients.activation": "sigmoid"}
    routed = tiny(model="routed", data_dir=data_dir, **blocks)
    content = shown(make_run(routed, tmp_path / "routed"), capsys)
    assert "Coefficients" in sections(content) and "Early termination" not in sections(content)


@pytest.mark.slow
def test_another_split_and_a_limit(workdir, capsys):
    content = shown(workdir, capsys, "--split=validation[:40]", "--images=7")
    text = text_of(content)
    assert "validation[:40] split, 40 images" in text and "first 7 images" in text and "7 of 40 images" in text
    assert content.count("data:image/png") <= 7


def test_mistakes_are_told_in_one_line(workdir, make_run, tiny, data_dir, tmp_path, capsys):
    assert "config.json" in refused(capsys, "--workdir=/nowhere")
    assert "no checkpoint of step 4" in refused(capsys, f"--workdir={workdir}", "--checkpoint=4")
    assert "'nosuch'" in refused(capsys, f"--workdir={workdir}", "--split=nosuch")
    for images in ("0", "1.5", "many"):
        assert f"--images='{images}'" in refused(capsys, f"--workdir={workdir}", f"--images={images}")
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "report.html", tmp_path / "none" / "report.html", tmp_path):
        err = refused(capsys, f"--workdir={workdir}", f"--output={output}")
        assert f"{output} cannot be written" in err and "--output=FILE" in err
    run = pathlib.Path(make_run(tiny(data_dir=data_dir), tmp_path / "run"))
    (run / "metrics.jsonl").write_text("nonsense\n")
    assert "metrics.jsonl" in refused(capsys, f"--workdir={run}")
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    assert "no checkpoint" in refused(capsys, f"--workdir={run}")
    assert [path.name for path in run.iterdir()] == ["config.json"]


def test_reliability_is_that_of_each_bin():
    random = np.random.default_rng(0)
    confidence = np.append(random.uniform(0.3, 1, 500), [0.0, 1.0])
    correct = (random.uniform(size=502) < confidence**2).astype(np.float32)
    bins = measure.reliability(confidence, correct)
    assert [b.low for b in bins] == pytest.approx([0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    error = 0.0
    for b in bins:
        rows = [i for i, c in enumerate(confidence) if b.low <= c < b.high or (b.high == 1 and c == 1)]
        assert b.count == len(rows)
        assert b.accuracy == pytest.approx(sum(correct[i] for i in rows) / len(rows))
        assert b.confidence == pytest.approx(sum(confidence[i] for i in rows) / len(rows))
        error += abs(sum(correct[i] - confidence[i] for i in rows)) / len(confidence)
    assert measure.calibration_error(bins) == pytest.approx(error)


def test_principal_components_are_those_of_the_svd():
    random = np.random.default_rng(0)
    points = random.normal(size=(40, 6)) * [5, 3, 1, 1, 0.5, 0.1] + 7
    xy, explained = measure.principal_components(points)
    centred = points - points.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(xy), np.abs(u * s)[:, :2], atol=1e-9)
    np.testing.assert_allclose(explained, (s**2 / np.sum(s**2))[:2])
    same, none = measure.principal_components(np.ones((5, 3)))
    assert np.all(same == 0) and np.all(none == 0)


def test_each_class_has_its_turn():
    labels = np.array([0, 0, 0, 1, 1, 2])
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.95, 0.1])
    assert measure.by_turns(np.arange(6), score, labels, 5).tolist() == [4, 0, 5, 1, 3]
    assert measure.by_turns(np.array([2, 3]), score, labels, 5).tolist() == [2, 3]
    assert measure.by_turns(np.array([], int), score, labels, 5).tolist() == []


def test_layers_are_in_the_order_in_which_they_run(workdir):
    measured = measure.measure(workdir, None, "validation[:8]", 8)
    names = measured.run.model.coefficient_names()
    assert sorted(measured.layers) == sorted(names) and list(measured.layers)[-1] == "head"
    assert all(names[place] == layer for layer, place in measured.layers.items())
    assert next(iter(measured.layers)).startswith("stages/0/0")


ROWS = [
    {"run": f"{model}-{seed}", "model": model, "width": width, "num_bases": bases, "seed": seed, "bases": given,
     "madds": 1.2e6, "top1": top1, "note": "<i>x</i>"}
    for model, width, bases, given, tops in (
        ("static", 0.5, 1, "", (0.90, 0.92, 0.97)),
        ("basisnet", 0.5, 4, 4, (0.95,)),
    )
    for seed, top1 in enumerate(tops)
]  # fmt: skip


@pytest.fixture
def swept(tmp_path):
    """`swept(rows)`: the folder of a sweep with these rows, a plot, and a report of one run."""
    folder = tmp_path / "a sweep"

    def make(rows=ROWS):
        folder.mkdir(exist_ok=True)
        with open(folder / "sweep.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ROWS[0])
            writer.writeheader()
            writer.writerows(rows)
        (folder / "accuracy.png").write_bytes(b"\x89PNG")
        (folder / "runs" / "static-1").mkdir(parents=True, exist_ok=True)
        (folder / "runs" / "static-1" / "report.html").write_text("a report")
        return folder

    return make


def test_a_sweep_is_averaged_over_its_seeds(swept, capsys):
    folder = swept()
    content = shown(folder, capsys)
    text = text_of(content)
    tops = np.array([0.90, 0.92, 0.97])
    half = 4.302652729911275 * tops.std(ddof=1) / 3**0.5  # Student's t, two degrees of freedom
    assert f"{page.percent(tops.mean())} ± {page.percent(half)}" in text
    assert "4 finished runs of 2 settings" in text and page.percent(0.95) in text and "1.20M" in text
    assert re.findall(r'<a href="(runs[^"]*)" class="name">(.*?)</a>', content) == [
        ("runs/static-1/report.html", "static-1")
    ]
    assert "<i>" not in content and "accuracy.png" in content and "data:image/png" in content
    assert not re.findall(r"https?://", content)
    foreign = folder.parent / "foreign"  # a run's teacher, say, with a report of its own
    foreign.mkdir()
    (foreign / "report.html").write_text("another report")
    assert "foreign" not in shown(swept([row | {"note": str(foreign)} for row in ROWS]), capsys).split("All columns")[0]
    elsewhere = folder.parent / "page.html"
    assert 'href="a%20sweep/runs/static-1/report.html"' in shown(folder, capsys, f"--output={elsewhere}")


def test_settings_of_a_sweep_are_what_varies():
    columns = list(ROWS[0])
    rows = [{name: str(value) for name, value in row.items()} for row in ROWS]
    assert sweep.varied(columns, rows) == ["model", "num_bases"]
    assert sweep.varied(columns, rows[:3]) == []
    rows[0]["note"] = "other"
    assert sweep.varied(columns, rows) == ["model", "num_bases", "note"]


def test_mistakes_with_a_sweep(swept, capsys):
    folder = swept([])
    assert "no run of the sweep has finished" in refused(capsys, f"--workdir={folder}")
    (folder / "sweep.csv").write_text("model,top1\nstatic\n")
    assert "row 1" in refused(capsys, f"--workdir={folder}")
    assert "--split given" in refused(capsys, f"--workdir={swept()}", "--split=test")
    assert sorted(path.name for path in folder.iterdir()) == ["accuracy.png", "runs", "sweep.csv"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Debian's package `chromium`")
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_a_browser_shows_it_without_complaint(workdir, swept, tmp_path, capsys, kind, width):
    content = shown(workdir if kind == "run" else swept(), capsys)
    # The window may not get as narrow as a phone, so the page is in a frame. All that folds is open.
    frame = f'<iframe style="width: {width}px; border: 0" srcdoc="{html.escape(content)}"></iframe>'
    look = """<script>addEventListener("load", () => {
        const inside = document.querySelector("iframe"), page = inside.contentDocument;
        for (const details of page.querySelectorAll("details")) details.open = true;
        const broken = [...page.images].filter((image) => !image.naturalWidth).length;
        const widths = [inside.contentWindow.innerWidth, page.documentElement.scrollWidth];
        document.title = JSON.stringify([...widths, broken, page.images.length]);
    })</script>"""
    path = tmp_path / "frame.html"
    path.write_text(f"<!doctype html><title></title>{look}{frame}")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command += ["--window-size=1500,900", "--enable-logging=stderr", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    inner, needed, broken, images = json.loads(re.search("<title>(.*?)</title>", done.stdout)[1])
    assert inner == width and needed <= width
    assert images > 0 and broken == (kind == "sweep")  # whose plot is no picture
    assert "CONSOLE" not in done.stderr
