"""A BasisNet trains where only jax, flax, optax, numpy, ml_collections and what they need are installed."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

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
from flax import nnx
model = basisnet_jax.create_model("basisnet_mobilenet_v3_small", 3, num_bases=2, width=0.1, image_size=32)
outputs = nnx.jit(lambda model, images: model(images))(model, np.zeros((2, 32, 32, 3), np.float32))
loss = basisnet_jax.loss(outputs, np.arange(2))
print(float(loss) > 0, model.predict(np.zeros((2, 40, 50, 3), np.uint8)).probabilities.shape)
"""


def closure(names):
    """The installed distributions of these names and of all that they need."""
    found, waiting = {}, [*names]
    while waiting:
        distribution = importlib.metadata.distribution(waiting.pop())
        if distribution.name not in found:
            found[distribution.name] = distribution
            needed = map(Requirement, distribution.requires or ())
            waiting += [each.name for each in needed if not each.marker or each.marker.evaluate({"extra": ""})]
    return found.values()


@pytest.mark.end_to_end
@pytest.mark.slow
def test_three_steps_in_an_environment_without_the_rest(tmp_path):
    """A new environment with links to the packages that are installed here, and the package without dependencies."""
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    (packages,) = tmp_path.glob("venv/lib/*/site-packages")
    for distribution in closure(NEEDED):
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(distribution.locate_file(top))
    # Of a copy: pip builds in the source tree, where an earlier build may have left modules that are gone.
    ignored = shutil.ignore_patterns(".*", "build", "runs", "*.egg-info")
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", packages, source], check=True, timeout=600)

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    names = ("tensorflow", "tensorflow_datasets", "clu", "matplotlib", "tensorboard", "sklearn")
    probe = f"from importlib.util import find_spec; print([n for n in {names} if find_spec(n)])"
    ended = subprocess.run(
        [python, "-c", probe + PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["[]", "3 True", "True (2, 3)"]
