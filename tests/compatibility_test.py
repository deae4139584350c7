"""A run, its export and its answers as commit 2681f21 left them: today's code reads them, and goes on with the run."""

import json
import pathlib
import tarfile

import numpy as np
import pytest

import basisnet_jax
from basisnet_jax.training import loop
from basisnet_jax.workdir import checkpoint, runs

BEFORE = pathlib.Path(__file__).with_name("run_of_2681f21.tar.gz")


@pytest.fixture
def then(tmp_path):
    """The folder with `run` (stopped at step 30 of 64), its safetensors `export`, and the `answers` of both."""
    with tarfile.open(BEFORE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.mark.slow
def test_old_runs_and_exports_answer_as_they_did(then):
    with np.load(then / "answers.npz") as answers:
        expected = dict(answers)
    run = runs.load(str(then / "run"))
    assert run.step == 30
    images = run.preprocess.normalize(expected.pop("images"))
    assert expected.keys() == {"logits", "preview_logits", "coefficients"}
    for outputs in (
        run.functions.evaluate(run.params, run.batch_stats, images),
        basisnet_jax.load(then / "export")(images),
    ):
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(outputs, name), value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.end_to_end
@pytest.mark.slow
def test_old_runs_go_on(then, data_dir, capsys):
    workdir, path = str(then / "run"), then / "run" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data_dir": data_dir}))  # where the suite has digits
    loop.train(runs.load_config(workdir), workdir)
    assert "going on after step 30" in capsys.readouterr().out
    with checkpoint.manager(workdir) as checkpoints:
        assert checkpoint.pick(checkpoints, None) == 64
    assert (then / "run" / "evaluation.json").exists()
