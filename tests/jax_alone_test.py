"""A BasisNet trains where only jax, flax, optax, numpy, ml_collections and what they need are installed."""

import importlib.metadata
import os
import shutil
import subprocess
import venv

import pytest
from conftest import ROOT

NEEDED = ("jax", "flax", "optax", "numpy", "ml_collections")
PROGRAM = """
import jax, numpy as np
from basisnet_jax import baselines, basisnet, models
from basisnet_jax.configs import digits
from basisnet_jax.training.step import build_step

config = digits.get_config("bases=3,width=0.2")
functions = models.functional(models.create(config))
config.batch_size, config.optimizer.warmup_epochs = 8, 0.0
step = build_step(config, functions, steps_per_epoch=100)
state = step.create_state(functions.params, functions.batch_stats)
batch = {"image": np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), np.uint8), "label": np.arange(8)}
losses = []
for _ in range(3):
    state, metrics = step.run(state, batch, jax.random.key(0))
    losses.append(float(metrics["loss"]))
print(int(state.step), losses[-1] < losses[0])

import basisnet_jax
model = basisnet_jax.create_model("basisnet_mobilenet_v3_small", 3, num_bases=2, width=0.1, image_size=32)
loss = basisnet_jax.loss(model(np.zeros((2, 32, 32, 3), np.float32)), np.arange(2))
print(float(loss) > 0, model.predict(np.zeros((2, 40, 50, 3), np.uint8)).probabilities.shape)
"""


@pytest.mark.slow
def test_three_steps_in_an_environment_without_the_rest(tmp_path):
    # Of a copy: pip builds in the source tree, where an earlier build may have left modules that are gone.
    source = shutil.copytree(
        ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".*", "build", "runs", "*.egg-info")
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    needed = [f"{name}=={importlib.metadata.version(name)}" for name in NEEDED]
    if subprocess.run([*pip, *needed], check=False, timeout=600).returncode:
        pytest.skip("takes a package index")
    subprocess.run([*pip, "--no-deps", source], check=True, timeout=600)
    for absent in ("tensorflow", "tensorflow_datasets", "clu", "matplotlib", "tensorboard"):
        assert subprocess.run([python, "-c", f"import {absent}"], env=environment, capture_output=True).returncode == 1
    ended = subprocess.run([python, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["3 True", "True (2, 3)"]
