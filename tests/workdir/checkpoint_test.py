"""Checkpoints: what is kept, what a damaged or foreign one leads to, and what a killed save leaves behind."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from basisnet_jax import cli, models, parsing
from basisnet_jax.errors import UserError
from basisnet_jax.training import optimizer
from basisnet_jax.training.step import create_state
from basisnet_jax.workdir import checkpoint, runs

CONFIG = str(conftest.ROOT / "configs" / "digits.py")


def make_state(step: int) -> dict:
    """Arrays that tell which step they belong to, large enough that the files hold more than their metadata."""
    kernel = jax.random.normal(jax.random.key(step), (3, 40, 50))
    return {
        "step": jnp.asarray(step),
        "params": {"a": {"kernel": kernel, "bias": kernel[0, 0]}, "b": {"scale": kernel}},
    }


def write(workdir, top1: dict[int, float | None], keep: int) -> list[int]:
    """Saves a state at every step of `top1`, with that validation top-1 if there is one; the steps that are kept."""
    checkpoints = checkpoint.manager(str(workdir), keep=keep)
    for step, value in top1.items():
        checkpoint.save(checkpoints, step, make_state(step), None if value is None else {"top1": value})
    checkpoints.wait_until_finished()
    checkpoints.close()
    return steps_on_disk(workdir)


def steps_on_disk(workdir) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_what_was_saved_is_restored(tmp_path):
    write(tmp_path, {1: 0.5, 2: 0.6}, keep=2)
    checkpoints = checkpoint.manager(str(tmp_path))
    for step in (1, 2):
        assert_equal(checkpoint.restore(checkpoints, step, make_state(0)), make_state(step))
    # Part of a state is enough to evaluate.
    assert_equal(
        checkpoint.restore(checkpoints, 2, {"params": make_state(0)["params"]}), {"params": make_state(2)["params"]}
    )


@pytest.mark.parametrize(
    ("top1", "kept"),
    [
        ({1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3, 5: 0.4, 6: 0.3}, [2, 5, 6]),  # the best is old
        ({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}, [3, 4]),  # the best is among the newest
        ({1: None, 2: 0.9, 3: None, 4: 0.3, 5: None, 6: None}, [2, 5, 6]),  # not every save comes with metrics
        ({1: None, 2: None, 3: None}, [2, 3]),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, top1, kept):
    assert write(tmp_path, top1, keep=2) == kept


def test_the_best_is_still_kept_by_a_run_that_goes_on(tmp_path):
    write(tmp_path, {1: 0.9, 2: 0.1}, keep=1)
    assert write(tmp_path, {3: 0.2, 4: 0.3}, keep=1) == [1, 4]


def test_pick(tmp_path):
    write(tmp_path, {1: 0.1, 2: 0.9, 3: 0.2, 4: None}, keep=4)
    checkpoints = checkpoint.manager(str(tmp_path))
    assert checkpoint.pick(checkpoints) == 4
    assert checkpoint.pick(checkpoints, "best") == 2
    assert checkpoint.pick(checkpoints, "3") == 3
    with pytest.raises(UserError, match="newest"):
        checkpoint.pick(checkpoints, "newest")
    with pytest.raises(UserError, match="no checkpoint of step 7 .* there are: 1, 2, 3, 4"):
        checkpoint.restore(checkpoints, checkpoint.pick(checkpoints, "7"), make_state(0))


def test_the_newest_is_the_best_of_a_run_without_metrics(tmp_path):
    write(tmp_path, {1: None, 2: None}, keep=2)
    assert checkpoint.pick(checkpoint.manager(str(tmp_path)), "best") == 2


def other_shape(state):
    state["params"]["a"]["kernel"] = jnp.zeros((4, 40, 50))


def other_name(state):
    state["params"]["c"] = state["params"].pop("b")


def more_layers(state):
    state["params"]["c"] = {"kernel": jnp.zeros((2, 2))}


@pytest.mark.parametrize("change", [other_shape, other_name, more_layers])
def test_the_checkpoint_of_another_model_is_refused(tmp_path, change):
    write(tmp_path, {1: 0.5}, keep=1)
    change(like := make_state(0))
    with pytest.raises(UserError, match="checkpoints/1 cannot be read: .* of another model"):
        checkpoint.restore(checkpoint.manager(str(tmp_path)), 1, like)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's reads beside the failed one
@pytest.mark.parametrize("share_left", [0.0, 0.5])
def test_a_truncated_file_is_reported_or_does_no_harm(tmp_path, share_left):
    """Whichever file of the newest checkpoint was cut off: one line that names the checkpoint, or the right numbers."""
    write(tmp_path / "whole", {1: 0.5, 2: 0.6}, keep=2)
    files = [path for path in contents(tmp_path / "whole") if path.startswith("checkpoints/2/")]
    reported = []
    for name in files:
        shutil.copytree(tmp_path / "whole", tmp_path / "cut")
        data = (tmp_path / "cut" / name).read_bytes()
        (tmp_path / "cut" / name).write_bytes(data[: int(len(data) * share_left)])
        before = contents(tmp_path / "cut")
        try:
            checkpoints = checkpoint.manager(str(tmp_path / "cut"))
            assert_equal(checkpoint.restore(checkpoints, checkpoint.pick(checkpoints), make_state(0)), make_state(2))
        except UserError as error:
            reported.append(name)
            assert "checkpoints/2" in str(error) and "\n" not in str(error)
        assert contents(tmp_path / "cut") == before
        shutil.rmtree(tmp_path / "cut")
    # Nothing that holds numbers, or says how to read them, may be among the harmless.
    large = [name for name in files if (tmp_path / "whole" / name).stat().st_size > 10_000]
    assert len(large) >= 1 and set(large) <= set(reported)
    assert {"checkpoints/2/default/_METADATA", "checkpoints/2/default/manifest.ocdbt"} <= set(reported)
    assert "checkpoints/2/metrics/metrics" in reported


@pytest.fixture(scope="module")
def digits_workdir(tmp_path_factory, data_dir):
    """A workdir of configs/digits.py that was stopped after step 2, as `train` would leave it, and its flags."""
    workdir = tmp_path_factory.mktemp("digits")
    argv = [f"--config={CONFIG}", f"--config.data_dir={data_dir}"]
    config = parsing.resolve(parsing.read_config(argv))
    runs.claim(config, str(workdir))
    model = models.functional(models.create(config))
    state = jax.jit(create_state, static_argnums=2)(
        model.params, model.batch_stats, optimizer.create(config.optimizer, 1e-3, model)
    )
    checkpoints = checkpoint.manager(str(workdir), keep=2)
    for step in (1, 2):
        checkpoint.save(checkpoints, step, state)
    checkpoints.close()
    return workdir, argv


@pytest.mark.parametrize("damaged", ["_METADATA", "the largest", "metrics"])
def test_what_is_damaged_is_set_aside(tmp_path, caplog, damaged):
    write(tmp_path / "whole", {1: 0.5, 2: 0.6}, keep=2)
    workdir = damage(tmp_path / "whole", tmp_path / "run", damaged)
    broken = contents(workdir / "checkpoints" / "2")
    with pytest.raises(UserError, match="checkpoints/2 (is damaged|cannot be read)|2 is damaged"):
        checkpoint.pick(checkpoint.manager(str(workdir)))
    checkpoint.set_damaged_aside(str(workdir))
    assert any(f"{workdir}/checkpoints/2 is damaged" in record.getMessage() for record in caplog.records)
    assert contents(workdir / "damaged" / "2-0") == broken
    assert checkpoint.pick(checkpoint.manager(str(workdir))) == 1
    caplog.clear()
    checkpoint.set_damaged_aside(str(workdir))  # what is whole stays
    assert steps_on_disk(workdir) == [1] and not caplog.records


def test_nothing_is_moved_where_nothing_is_whole(tmp_path):
    write(tmp_path, {1: 0.5}, keep=2)
    (tmp_path / "checkpoints" / "1" / "checksums.json").write_text("{")
    with pytest.raises(UserError, match="all checkpoints in .* are damaged .checksums.json cannot be read"):
        checkpoint.set_damaged_aside(str(tmp_path))
    assert steps_on_disk(tmp_path) == [1]


def test_a_missing_file_is_noticed(tmp_path):
    write(tmp_path, {1: 0.5}, keep=2)
    folder = tmp_path / "checkpoints" / "1"
    [file] = folder.rglob("_METADATA")
    file.unlink()
    assert checkpoint.damage(folder) == f"{file.relative_to(folder)} is not what was written"


def test_a_flipped_bit_is_noticed(tmp_path):
    """In any file: none is too small, and none of them can be told from a whole one by its size."""
    write(tmp_path, {1: 0.5}, keep=1)
    folder = tmp_path / "checkpoints" / "1"
    assert checkpoint.damage(folder) is None
    listed = json.loads((folder / "checksums.json").read_text())
    assert {"default/_METADATA", "metrics/metrics"} <= listed.keys() and len(listed) > 4
    for name in listed:
        whole = (folder / name).read_bytes()
        if whole:
            (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))
            assert checkpoint.damage(folder) == f"{name} is not what was written"
            (folder / name).write_bytes(whole)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_one_line_of_a_process(digits_workdir, tmp_path):
    """As a process: what background threads print at its end counts as well."""
    workdir = damage(digits_workdir[0], tmp_path / "run", "the largest")
    command = [sys.executable, "-m", "basisnet_jax.cli", "evaluate", f"--workdir={workdir}"]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert process.returncode == 2 and process.stdout == ""
    assert len(process.stderr.splitlines()) == 1 and f"{workdir}/checkpoints/2 " in process.stderr


def damage(source: Path, workdir: Path, which: str) -> Path:
    """A copy of a workdir in which one file of checkpoint 2 is cut off: the largest to half, others to nothing."""
    shutil.copytree(source, workdir)
    files = [path for path in (workdir / "checkpoints" / "2").rglob("*") if path.is_file()]
    path = max(files, key=lambda path: (path.name == which, path.stat().st_size))
    path.write_bytes(b"" if path.name == which else path.read_bytes()[: path.stat().st_size // 2])
    return workdir


@pytest.mark.slow
def test_evaluate_with_a_wrong_checkpoint_flag(digits_workdir, capsys):
    workdir, _ = digits_workdir
    for flag, named in (("7", "no checkpoint of step 7"), ("newest", "newest")):
        assert cli.main(["evaluate", f"--workdir={workdir}", f"--checkpoint={flag}"]) == 2
        error = capsys.readouterr().err
        assert named in error and error.count("\n") == 1


KILLED_IN_A_SAVE = """
import os, signal, sys
import jax.numpy as jnp
from basisnet_jax.workdir import checkpoint

checkpoints = checkpoint.manager(sys.argv[1], keep=3)
checkpoint.save(checkpoints, 2, {"step": jnp.asarray(2), "params": jnp.ones(30_000_000)})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_unfinished_save_is_ignored_and_removed(tmp_path):
    write(tmp_path, {1: 0.5}, keep=3)
    process = subprocess.run([sys.executable, "-c", KILLED_IN_A_SAVE, str(tmp_path)], check=False, timeout=120)
    assert process.returncode == -9
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert len(left) == 2 and left[0] == "1" and left[1] != "2", f"the save was not interrupted: {left}"

    assert checkpoint.pick(checkpoint.manager(str(tmp_path))) == 1  # reading leaves everything where it is
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == left

    checkpoints = checkpoint.manager(str(tmp_path), keep=3)
    assert checkpoint.pick(checkpoints) == 1
    checkpoint.save(checkpoints, 2, make_state(2))
    checkpoints.wait_until_finished()
    checkpoints.close()
    assert steps_on_disk(tmp_path) == [1, 2]
    assert_equal(checkpoint.restore(checkpoint.manager(str(tmp_path)), 2, make_state(0)), make_state(2))


def test_metrics_are_kept_with_the_checkpoint(tmp_path):
    write(tmp_path, {1: 0.25}, keep=1)
    assert json.loads((tmp_path / "checkpoints/1/metrics/metrics").read_text())["top1"] == 0.25
