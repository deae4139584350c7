"""Training from end to end on the digits, with a network that takes seconds: what a run writes, that it can be made
again and resumed bit for bit, what it refuses, and what one step does."""

import collections
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from basisnet_jax import cli, models, parsing
from basisnet_jax.data import pipeline
from basisnet_jax.errors import UserError
from basisnet_jax.training import optimizer
from basisnet_jax.training.step import create_state, make_train_step
from basisnet_jax.workdir import runs

# 16 steps, 8 an epoch. Checkpoints at 5, 8, 10, 15 and 16: most of them in the middle of an epoch.
CONFIG = """
from basisnet_jax.configs import digits


def get_config(arg=""):
    config = digits.get_config(arg)
    for network in (config.network, config.preview):
        network.width = 0.1
        network.head_features = 16
        network.num_stages = 1
        network.stage_strides = (2,)
    config.basis.num_bases = 2
    config.image_size = 16
    config.preview.image_size = 8
    config.num_epochs = 2.0
    config.batch_size = 128
    config.optimizer.learning_rate = 0.02
    config.optimizer.warmup_epochs = 0.5
    config.ema_decay = 0.5
    config.log_every_steps = 2
    config.eval_every_epochs = 1.0
    config.checkpoint_every_steps = 5
    config.keep_checkpoints = 2
    return config
"""


@pytest.fixture(scope="module")
def flags(tmp_path_factory, data_dir):
    """The flags that name the config and the prepared data."""
    file = tmp_path_factory.mktemp("config") / "tiny.py"
    file.write_text(CONFIG)
    argv = [f"--config={file}", f"--config.data_dir={data_dir}"]
    pipeline.open(parsing.read_config(argv)).num_examples("train")
    return argv


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    """The workdir of an uninterrupted run. Tests that write take a copy."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert cli.main(["train", *flags, f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished workdir, with the times of its files."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def config_of(flags, *overrides):
    return parsing.resolve(parsing.read_config([*flags, *(f"--config.{override}" for override in overrides)]))


def rows(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def evaluation(workdir) -> dict:
    """What `evaluation.json` says, but for when it was made."""
    report = json.loads((workdir / "evaluation.json").read_text())
    del report["provenance"]
    return report


def steps_on_disk(workdir) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def saved_state(workdir, step: int) -> dict[tuple, np.ndarray]:
    """All arrays of a checkpoint by their path, read with Orbax alone."""
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore(workdir.absolute() / "checkpoints" / str(step) / "default")
    return {path: np.asarray(leaf) for path, leaf in ocp.tree.to_flat_dict(tree).items()}


def assert_same_arrays(state, other):
    assert state.keys() == other.keys()
    for path, array in state.items():
        assert array.dtype == other[path].dtype, path
        np.testing.assert_array_equal(array, other[path], err_msg=str(path))


def file_times(workdir) -> dict[str, int]:
    """Of all but the lock, which every run takes."""
    return {str(p): p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file() and p.name != "lock"}


def last_line(capsys) -> str:
    return capsys.readouterr().err.splitlines()[-1]  # before it, on some runs, the progress


@pytest.mark.slow
def test_a_run_from_end_to_end(finished, flags):
    config = json.loads((finished / "config.json").read_text())
    assert config == config_of(flags).to_dict() and config["batch_size"] == 128
    assert {8, 15, 16} >= set(steps_on_disk(finished)) >= {15, 16}  # the newest two, and the best of those at 8 and 16
    assert list(finished.glob("events.out.tfevents.*"))
    assert (finished / "early_termination.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "coefficient_head/kernel" in (finished / "parameters.txt").read_text()

    logged = rows(finished)
    by_split = collections.defaultdict(list)
    for row in logged:
        by_split[row.pop("split")].append(row.pop("step"))
        assert len(row) > 3 and all(isinstance(v, float | int) and math.isfinite(v) for v in row.values())
    assert by_split == {"train": list(range(2, 17, 2)), "validation": [8, 16], "test": [16]}
    first, last = (next(row for row in rows if "grad_norm" in row) for rows in (logged, logged[::-1]))
    assert last["loss"] < first["loss"]

    report = evaluation(finished)
    fractions = [report[name] for name in ("top1", "top5", "preview_top1", "preview_top5")]
    assert all(0 <= value <= 1 for value in fractions) and report["top5"] >= report["top1"]
    assert report["loss"] > 0 and report["num_examples"] == 360 and report["step"] == 16
    assert 0 < report["preview_madds"] < report["madds"]
    assert report["raw"]["num_examples"] == 360 and report["raw"]["loss"] != report["loss"]
    test_row = logged[-1]
    assert test_row == {name: report[name] for name in test_row}

    early = report["early_termination"]
    assert 0 <= early["share"] <= 1 and 0 <= early["top1"] <= 1
    assert report["preview_madds"] <= early["mean_madds"] <= report["madds"]
    assert early["chosen_on"] == "validation" and 0 <= early["threshold"] <= 1.1
    nobody, everybody = early["curve"][0], early["curve"][-1]
    assert (nobody["share"], nobody["top1"], nobody["mean_madds"]) == (0, report["top1"], report["madds"])
    assert (everybody["share"], everybody["mean_madds"]) == (1, report["preview_madds"])
    assert everybody["top1"] == pytest.approx(report["preview_top1"])


@pytest.mark.slow
def test_the_seed_decides_the_run(finished, flags, tmp_path):
    assert cli.main(["train", *flags, f"--workdir={tmp_path}/same"]) == 0
    assert_same_arrays(saved_state(tmp_path / "same", 16), saved_state(finished, 16))
    assert rows(tmp_path / "same") == rows(finished)
    assert evaluation(tmp_path / "same") == evaluation(finished)

    # Another seed: other weights, another order of the data.
    configs = [config_of(flags, f"seed={seed}") for seed in (0, 1)]
    params, others = (models.functional(models.create(config)).params for config in configs)
    kernels = {path: a for path, a in ocp.tree.to_flat_dict(params).items() if path[-1] == "kernel"}
    assert not [
        path for path, a in ocp.tree.to_flat_dict(others).items() if path in kernels and (a == kernels[path]).all()
    ]
    batch, other = (next(pipeline.open(config).train_batches()) for config in configs)
    assert (batch["label"] != other["label"]).any()


# Holds the pipeline still at the batch of step 16, which is asked for two steps ahead, so that the kill comes at a
# known place: past the checkpoint of step 10 and what was logged at step 12, in the middle of an epoch.
STALLING = """
import sys, time
from basisnet_jax import cli
from basisnet_jax.data import pipeline

original = pipeline.Dataset.train_batches

def stalling(data, first_step, **kwargs):
    for step, batch in enumerate(original(data, first_step, **kwargs), first_step + 1):
        if step == 16:
            time.sleep(300)
        yield batch

pipeline.Dataset.train_batches = stalling
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.end_to_end
@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(finished, flags, tmp_path, capsys):
    workdir = tmp_path / "run"
    command = ["train", *flags, f"--workdir={workdir}"]
    process = subprocess.Popen([sys.executable, "-c", STALLING, *command])
    try:
        deadline = time.monotonic() + 150
        while not ((workdir / "checkpoints" / "10").exists() and rows(workdir)[-1]["step"] == 12):
            assert process.poll() is None and time.monotonic() < deadline, "the run never got to step 12"
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    assert not (workdir / "evaluation.json").exists()
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write('{"step": 14, "spl')  # as if it had been killed while it wrote

    assert cli.main(command) == 0
    assert "going on after step 10" in capsys.readouterr().out
    resumed, uninterrupted = saved_state(workdir, 16), saved_state(finished, 16)
    fields = {"step", "params", "batch_stats", "opt_state", "ema_params", "ema_batch_stats"}
    assert {path[0] for path in uninterrupted} == fields
    assert_same_arrays(resumed, uninterrupted)
    seen = [(row["step"], row["split"]) for row in rows(workdir)]
    assert len(seen) == len(set(seen))
    assert rows(workdir) == rows(finished)
    assert evaluation(workdir) == evaluation(finished)


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(copy, flags, capsys):
    before = file_times(copy)
    assert cli.main(["train", *flags, f"--workdir={copy}"]) == 0
    assert "has finished its 16 steps" in capsys.readouterr().out
    assert file_times(copy) == before

    report = evaluation(copy)
    (copy / "evaluation.json").unlink()
    assert cli.main(["train", *flags, f"--workdir={copy}"]) == 0
    assert "has finished its 16 steps" in capsys.readouterr().out
    assert evaluation(copy) == report
    after = file_times(copy)
    for remade in ("evaluation.json", "early_termination.png", "confusion.csv", "confusion.png"):
        assert after.pop(f"{copy}/{remade}") != before.pop(f"{copy}/{remade}")
    assert after == before


@pytest.mark.slow
def test_a_run_from_before_a_field_existed(copy, flags, capsys):
    config = json.loads((copy / "config.json").read_text())
    del config["accumulate"], config["augment"]["erasing"]
    (copy / "config.json").write_text(json.dumps(config))
    assert runs.load_config(str(copy)).accumulate == 1
    assert cli.main(["train", *flags, f"--workdir={copy}"]) == 0
    assert "has finished its 16 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_the_workdir_of_another_config_is_refused(copy, flags, capsys):
    before = file_times(copy)
    changes = ["--config.batch_size=64", "--config.network.stage_strides=(1,)"]
    assert cli.main(["train", *flags, *changes, f"--workdir={copy}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(copy) in error
    assert "batch_size: given 64, there 128" in error
    assert "network.stage_strides: given [1], there [2]" in error
    assert "learning_rate" not in error
    assert file_times(copy) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("learning_rate", "told", "kept"),
    [
        # The first step's learning rate is 0, and the second tears the weights apart.
        ("1e30", ["diverged at step 2", "the last good checkpoint is of step 1"], [1]),
        # Infinite as float32: from a loss that is still finite the first step makes weights that are not.
        ("1e40", ["diverged at step 1", "no checkpoint was saved yet"], []),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_run_that_diverges_stops(flags, tmp_path, capsys, learning_rate, told, kept):
    overrides = ["model=static", f"optimizer.learning_rate={learning_rate}", "checkpoint_every_steps=1"]
    assert cli.main(["train", *flags, *(f"--config.{o}" for o in overrides), f"--workdir={tmp_path}"]) == 2
    error = last_line(capsys)
    assert all(text in error for text in told), error
    assert steps_on_disk(tmp_path) == kept
    for step in kept:
        for path, array in saved_state(tmp_path, step).items():
            assert np.isfinite(array).all(), (step, path)
    assert not (tmp_path / "evaluation.json").exists()


@pytest.mark.slow
def test_a_static_network(flags, tmp_path):
    overrides = ["--config.model=static", "--config.num_epochs=0.5"]
    assert cli.main(["train", *flags, *overrides, f"--workdir={tmp_path}"]) == 0
    report = evaluation(tmp_path)
    assert {"top1", "top5", "loss", "madds", "raw"} <= report.keys() and report["num_examples"] == 360
    assert not [name for name in report if "preview" in name or "early" in name]
    assert not [name for row in rows(tmp_path) for name in row if "preview" in name]
    assert not (tmp_path / "early_termination.png").exists()
    assert cli.main(["evaluate", f"--workdir={tmp_path}"]) == 0
    assert evaluation(tmp_path) == report


@pytest.mark.slow
def test_evaluate_agrees_with_the_evaluation_of_training(copy, flags):
    at_the_end = evaluation(copy)
    best = max((row for row in rows(copy) if row["split"] == "validation"), key=lambda row: row["top1"])["step"]

    assert cli.main(["evaluate", f"--workdir={copy}"]) == 0
    assert evaluation(copy) == at_the_end

    # A point in the middle of the curve, so that some images stop and some do not.
    point = at_the_end["early_termination"]["curve"][50]
    assert 0 < point["share"] < 1
    assert cli.main(["evaluate", f"--workdir={copy}", f"--threshold={point['threshold']!r}"]) == 0
    early = evaluation(copy)["early_termination"]
    assert {name: early[name] for name in point} == point and early["chosen_on"] == "given"

    assert cli.main(["evaluate", f"--workdir={copy}", "--checkpoint=best"]) == 0
    assert evaluation(copy)["step"] == best

    assert cli.main(["evaluate", f"--workdir={copy}", "--checkpoint=15", "--threshold=0.5"]) == 0
    other = evaluation(copy)
    assert other["step"] == 15 and other["early_termination"]["threshold"] == 0.5
    assert other["loss"] != at_the_end["loss"] and other["raw"]["loss"] != at_the_end["raw"]["loss"]

    assert cli.main(["train", *flags, f"--workdir={copy}"]) == 0  # has nothing to train, but the last step's report
    assert evaluation(copy) == at_the_end


@pytest.fixture(scope="module")
def batch(flags):
    return next(pipeline.open(config_of(flags, "batch_size=32")).train_batches())


def one_step(config, tx=None):
    """The jitted train step of a config and its first state; `tx` stands in for the config's optimizer."""
    functions = models.functional(models.create(config))
    tx = tx or optimizer.create(config.optimizer, lambda count: 0.01, functions)
    state = jax.jit(create_state, static_argnums=2)(functions.params, functions.batch_stats, tx)
    train_step = jax.jit(make_train_step(config, functions, tx))
    return lambda state, batch: train_step(state, batch, jax.random.key(config.seed)), state


@pytest.mark.slow
@pytest.mark.parametrize("model", ["basisnet", "static"])
def test_steps_on_one_batch_lower_its_loss(flags, batch, model):
    config = config_of(flags, f"model={model}", "ema_decay=0.15")
    step, state = one_step(config)
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append({name: float(value) for name, value in metrics.items()})
    assert int(state.step) == 20
    for name in ("loss", "final_loss") + ("preview_loss",) * (model == "basisnet"):
        assert losses[-1][name] < losses[0][name] - 0.02, name
    if model == "basisnet":
        assert losses[0]["loss"] == pytest.approx(losses[0]["final_loss"] + losses[0]["preview_loss"], rel=1e-6)


@pytest.mark.slow
def test_the_moving_average(flags, batch):
    """ema <- d * ema + (1 - d) * new with d = min(decay, (1 + t) / (10 + t)), of params and batch statistics."""
    config = config_of(flags, "ema_decay=0.15")
    step, state = one_step(config)
    expected = jax.tree.map(np.asarray, (state.params, state.batch_stats))
    start = expected
    for decay in (1 / 10, 0.15, 0.15):  # (1 + 1) / (10 + 1) and what follows are above 0.15
        state, _ = step(state, batch)
        new = (state.params, state.batch_stats)
        expected = jax.tree.map(lambda e, n, d=decay: d * e + (1 - d) * np.asarray(n), expected, new)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6),
        (state.ema_params, state.ema_batch_stats),
        expected,
    )
    moved = jax.tree.map(lambda e, s: not np.allclose(e, s, rtol=1e-5, atol=1e-6), expected, start)
    assert np.mean(jax.tree.leaves(moved)) > 0.9


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_weight_decay_touches_kernels_only(flags, name):
    config = config_of(flags, f"optimizer.name={name}")
    functions = models.functional(models.create(config))
    params = functions.params
    mask = ocp.tree.to_flat_dict(optimizer.kernels_only(params))
    assert {path for path, decayed in mask.items() if decayed} == {path for path in mask if path[-1] == "kernel"}
    assert {path[-1] for path in mask} == {"kernel", "bias", "scale"}

    # With no gradient, all that an update does is decay.
    tx = optimizer.create(config.optimizer, lambda count: 0.1, functions)
    params = jax.tree.map(jnp.ones_like, params)
    updates, _ = jax.jit(lambda params: tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params))(
        params
    )
    for path, update in ocp.tree.to_flat_dict(updates).items():
        assert np.all(update < 0) if path[-1] == "kernel" else np.all(update == 0), path


@pytest.mark.slow
def test_the_weight_of_the_previews_loss(flags, batch):
    """At 0 the preview learns only as the source of coefficients; its own classifier has no gradient."""
    # The transformation adds -gradient to the parameters.
    step, state = one_step(config_of(flags, "preview_loss_weight=0.0"), optax.scale(-1.0))
    new, _ = step(state, batch)
    gradient = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), new.params, state.params)
    assert max(jax.tree.leaves(gradient["preview"]["classifier"])) == 0
    assert min(jax.tree.leaves(gradient["coefficient_head"])) > 0
    assert max(jax.tree.leaves(gradient["preview"]["stages"])) > 0


def test_a_run_goes_on_with_what_changes_memory_and_rounding_alone(tiny, tmp_path):
    runs.claim(tiny(remat_kernels=False, reduce_dtype="bfloat16"), str(tmp_path))
    runs.check(tiny(seed=1), str(tmp_path))  # before the first checkpoint a workdir belongs to nobody
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    runs.check(tiny(), str(tmp_path))
    with pytest.raises(UserError, match="seed: given 1, there 0"):
        runs.check(tiny(seed=1), str(tmp_path))


def test_a_run_from_before_a_field_existed_does_what_was_done_then(tiny, tmp_path):
    then = {"optimizer.match_static": False, "optimizer.coefficient_rate": 0.0}
    runs.claim(tiny(**then), str(tmp_path))
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["optimizer"]["match_static"], config["optimizer"]["coefficient_rate"]
    path.write_text(json.dumps(config))
    config = runs.load_config(str(tmp_path))
    assert (config.optimizer.match_static, config.optimizer.coefficient_rate) == (False, 0.0)
    runs.check(tiny(**then), str(tmp_path))
    with pytest.raises(UserError, match=r"coefficient_rate: given 8.0, there 0.0; optimizer.match_static: given True"):
        runs.check(tiny(), str(tmp_path))
    # Its checkpoints hold the state of the optimizer that was made then.
    functions = models.functional(models.create(config))
    made_then = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(0.1, mask=optimizer.kernels_only),
        optax.scale_by_learning_rate(lambda count: 0.1),
    )
    state = optimizer.create(config.optimizer, lambda count: 0.1, functions).init(functions.params)
    assert jax.tree.structure(state) == jax.tree.structure(made_then.init(functions.params))
