"""Calibration: what it writes follows from the validation split, evaluation and prediction obey it, and no other
checkpoint's is taken."""

import hashlib
import json
import pathlib

import jax
import numpy as np
import pytest

from basisnet_jax import cli, early_exit, madds
from basisnet_jax.data import pipeline
from basisnet_jax.distributed import partition
from basisnet_jax.inference import calibrate, evaluate
from basisnet_jax.training import losses
from basisnet_jax.workdir import runs


@pytest.fixture(scope="module")
def workdir(make_run, tiny, data_dir, tmp_path_factory):
    return make_run(tiny(data_dir=data_dir), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def held_out(workdir):
    """The validation split's preview logits, and whether preview and final answer are right; costs of both."""
    run = runs.load(workdir)
    mesh = partition.create_mesh(run.config.eval_batch_size)
    per_example = evaluate.make_per_example(run.functions, run.preprocess.normalize, mesh, logits=True)
    rows = per_example(run.params, run.batch_stats, pipeline.open(run.config).eval_batches("validation"))
    return rows, (madds.preview_only(run.items), madds.total(run.items))


@pytest.fixture
def calibrated(workdir, capsys):
    """`calibrated(*argv, code=0)`: what the verb leaves in early_exit.json, or the line in which it fails."""
    path = pathlib.Path(workdir, "early_exit.json")

    def run(*argv, code=0):
        assert cli.main(["calibrate", f"--workdir={workdir}", *argv]) == code
        out, err = capsys.readouterr()
        return err if code else json.loads(path.read_text()) | {"printed": out}

    yield run
    for name in ("early_exit.json", "evaluation.json"):
        pathlib.Path(workdir, name).unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", early_exit.CRITERIA)
def test_the_figures_are_those_of_the_threshold(calibrated, held_out, workdir, criterion):
    rows, (stopped_cost, cost) = held_out
    target = (stopped_cost + cost) / 2
    found = calibrated(f"--target_madds={target}", f"--criterion={criterion}")
    confidence = np.asarray(early_exit.confidence(rows["preview_logits"], criterion))
    stops = confidence >= found["threshold"]
    top1 = np.where(stops, rows["preview_top1"], rows["top1"]).mean()
    assert found["share"] == pytest.approx(stops.mean()) == pytest.approx(0.5, abs=0.01)
    assert found["mean_madds"] == pytest.approx(stops.mean() * stopped_cost + (1 - stops.mean()) * cost)
    assert found["mean_madds"] <= target
    assert found["top1"] == pytest.approx(top1) and found["drop"] == pytest.approx(rows["top1"].mean() - top1)
    assert (found["criterion"], found["temperature"], found["num_examples"]) == (criterion, 1.0, 360)
    checksums = pathlib.Path(workdir, "checkpoints", "3", "checksums.json").read_bytes()
    assert (found["step"], found["checkpoint"]) == (3, hashlib.sha256(checksums).hexdigest())
    assert f"{found['threshold']:.4f}" in found["printed"] and "2000 resamples" in found["printed"]


def test_the_drop_stays_within_what_is_allowed(calibrated, held_out):
    rows, costs = held_out
    allowed = rows["top1"].mean() - rows["preview_top1"].mean() + 0.01
    drops = (0.0, max(allowed, 0.01))
    loose, strict = (calibrated(f"--max_drop={drop}") for drop in drops[::-1])
    assert strict["drop"] <= 1e-9 and loose["drop"] <= drops[1] + 1e-9
    assert loose["mean_madds"] == pytest.approx(costs[0]) and strict["mean_madds"] >= loose["mean_madds"]
    assert strict["target"] == {"max_drop": 0.0}


@pytest.mark.slow
def test_evaluation_and_prediction_obey_it(calibrated, workdir, held_out):
    _, costs = held_out
    found = calibrated(f"--target_madds={np.mean(costs)}", "--criterion=margin", "--temperature_scaling")
    rule = runs.load_rule(workdir, 3)
    assert rule[:3] == (found["threshold"], "margin", found["temperature"]) and rule.temperature != 1
    for argv, chosen in (([], "early_exit.json"), (["--threshold=0.5"], "given")):
        assert cli.main(["evaluate", f"--workdir={workdir}", *argv]) == 0
        report = json.loads(pathlib.Path(workdir, "evaluation.json").read_text())
        early = report["early_termination"]
        assert early["chosen_on"] == chosen
        if not argv:
            assert tuple(early[field] for field in early_exit.Rule._fields) == rule
            assert runs.evaluated_rule(workdir, 3) == rule
    run = runs.load(workdir)
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 1), np.uint8)
    outputs = jax.jit(run.functions.evaluate)(run.params, run.batch_stats, run.preprocess.normalize(images))
    probabilities = np.sort(jax.nn.softmax(outputs.preview_logits / rule.temperature))
    stops = probabilities[:, -1] - probabilities[:, -2] >= rule.threshold
    run.model.rule = rule
    found = run.model.predict(images, batch_size=8)
    assert found.stage.tolist() == ["preview" if stop else "specialist" for stop in stops]
    np.testing.assert_allclose(found.probabilities.max(axis=1)[stops], probabilities[stops, -1], rtol=1e-4)


def test_a_calibration_of_another_checkpoint_is_refused(calibrated, workdir, capsys):
    path = pathlib.Path(workdir, "early_exit.json")
    found = calibrated("--max_drop=0.02", "--criterion=entropy")
    del found["printed"]
    command = f"`basisnet calibrate --workdir={workdir} --checkpoint=3 --max_drop=0.02 --criterion=entropy`"
    for stale, named in (
        (found | {"step": 7}, "step 7, not"),
        (found | {"checkpoint": "0"}, "step 3 of another training"),
    ):
        path.write_text(json.dumps(stale))
        for argv in (["evaluate"], ["predict", "a.png"]):
            assert cli.main([*argv, f"--workdir={workdir}"]) == 2
            out, err = capsys.readouterr()
            assert err.count("\n") == 1 and out == "" and named in err and "this step 3" in err and command in err
    path.write_text(json.dumps(found | {"criterion": "sum"}))
    assert cli.main(["evaluate", f"--workdir={workdir}"]) == 2
    assert str(path) in capsys.readouterr().err
    assert not pathlib.Path(workdir, "evaluation.json").exists()


def test_mistakes_leave_the_calibration_as_it_is(calibrated, workdir, held_out, make_run, tiny, tmp_path, capsys):
    _, (stopped_cost, cost) = held_out
    calibrated("--max_drop=0.02")
    path = pathlib.Path(workdir, "early_exit.json")
    before = path.read_bytes()
    for target in (stopped_cost - 1, cost + 1):
        err = calibrated(f"--target_madds={target}", code=2)
        assert f"{target:,}" in err and f"{stopped_cost:,}" in err and f"{cost:,}" in err and err.count("\n") == 1
    assert "no checkpoint of step 4" in calibrated("--max_drop=0.02", "--checkpoint=4", code=2)
    assert path.read_bytes() == before
    static = make_run(tiny(model="static"), tmp_path)
    assert cli.main(["calibrate", f"--workdir={static}", "--max_drop=0.02"]) == 2
    assert "'static' model, which has no preview" in capsys.readouterr().err


def test_the_temperature_has_the_least_cross_entropy():
    random = np.random.default_rng(0)
    true = random.normal(size=(20_000, 5)) * 2
    labels = (true + random.gumbel(size=true.shape)).argmax(-1)  # drawn from softmax(true)
    for scale in (0.4, 3.0):
        temperature = calibrate.fit_temperature(scale * true, labels)
        assert temperature == pytest.approx(scale, rel=0.05)

        def loss(temperature, scale=scale):
            logits = scale * true / temperature
            return float(losses.cross_entropy(logits, losses.targets(labels, 5)).mean())

        assert loss(temperature) <= min(loss(1.02 * temperature), loss(temperature / 1.02))
    assert calibrate.fit_temperature(5 * np.eye(3), np.arange(3)) == pytest.approx(0.05, rel=1e-3)


def test_intervals_are_those_of_images_drawn_anew():
    random = np.random.default_rng(0)
    stops, preview, final = (random.uniform(size=300) < share for share in (0.4, 0.8, 0.9))
    preview, final = preview.astype(float), final.astype(float)
    found = calibrate.intervals(stops, preview, final, 10.0, 100.0)
    assert found == calibrate.intervals(stops, preview, final, 10.0, 100.0)
    drawn = random.integers(0, 300, (20_000, 300))
    madds = np.where(stops, 10.0, 100.0)[drawn].mean(-1)
    drop = np.where(stops, final - preview, 0)[drawn].mean(-1)
    np.testing.assert_allclose(found["mean_madds"], np.quantile(madds, [0.025, 0.975]), atol=0.6)
    np.testing.assert_allclose(found["drop"], np.quantile(drop, [0.025, 0.975]), atol=0.005)
