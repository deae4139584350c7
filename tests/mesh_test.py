"""The same run on any mesh: simulated devices in one process and in two give what one device gives."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from basisnet_jax import cli, partition
from basisnet_jax.data import pipeline
from basisnet_jax.errors import UserError

pytestmark = pytest.mark.slow
WORKER = os.path.join(os.path.dirname(__file__), "mesh_worker.py")


@pytest.fixture(scope="module")
def config(tiny, data_dir):
    """No randomness that depends on how a batch is cut, an optimizer that does not magnify rounding."""
    config = tiny(data_dir=data_dir, batch_size=32, eval_batch_size=48, **{"test_split": "test[:101]"})
    config.network.width = 0.5  # large enough for arrays that are worth splitting
    config.network.head_features = 128
    config.network.dropout = config.preview.dropout = 0.0
    config.optimizer.update(name="rmsprop", learning_rate=0.01, epsilon=1e-3, second_moment_decay=0.9)
    pipeline.num_examples(config, "train")
    return config


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """`run(variant, devices=1, processes=1, **fields)`: the arrays that the worker saves."""
    folder = tmp_path_factory.mktemp("mesh")
    done = {}

    def run(variant, devices=1, processes=1, **fields):
        key = (variant, devices, processes, *sorted(fields.items()))
        if key not in done:
            changed = cli.resolve(config)
            changed.update(fields)
            name = str(folder / f"{len(done)}")
            with open(f"{name}.json", "w") as file:
                json.dump(changed.to_dict(), file)
            env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // processes}"}
            with socket.socket() as free:
                free.bind(("localhost", 0))
                address = f"localhost:{free.getsockname()[1]}"
            workers = [
                subprocess.Popen(
                    [sys.executable, WORKER, variant, f"{name}.json", f"{name}.npz"]
                    + [address, str(processes), str(i)] * (processes > 1),
                    env=env,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                for i in range(processes)
            ]
            for worker in workers:
                output, _ = worker.communicate(timeout=300)
                assert worker.returncode == 0, output[-3000:]
            done[key] = dict(np.load(f"{name}.npz"))
        return done[key]

    return run


def largest_difference(ours, expected):
    """Over all arrays of the state but the step, relative to each array's largest value."""
    names = [name for name in expected if name != "split" and not name.startswith("metrics/")]
    assert set(names) == {name for name in ours if name != "split" and not name.startswith("metrics/")}
    return max(np.abs(ours[name] - expected[name]).max() / max(np.abs(expected[name]).max(), 1e-3) for name in names)


# Sums over the batch in another order: float32 rounding and what three steps make of it.
TOLERANCE = 2e-5


def compare(ours, expected, name):
    difference = largest_difference(ours, expected)
    print(f"{name}: largest difference {difference:.1e}")
    assert difference < TOLERANCE
    assert abs(ours["metrics/loss"] - expected["metrics/loss"]) < 1e-5


@pytest.mark.parametrize(("devices", "processes", "fsdp"), [(8, 1, 1), (8, 1, 0), (8, 1, 2), (4, 2, 1), (4, 2, 0)])
def test_the_mesh_changes_nothing(run, devices, processes, fsdp):
    ours = run("steps", devices, processes, fsdp=fsdp)
    assert ours["split"] == 0 if fsdp == 1 else ours["split"] > 10
    compare(ours, run("steps"), f"{devices} devices, {processes} processes, fsdp={fsdp}")


def test_the_steps_move_what_is_compared(run, tmp_path):
    kernel = "params/specialist/last/conv/layer/kernel"
    moved = np.abs(run("steps")[kernel] - run(f"save:{tmp_path}")[kernel]).max()
    assert moved > 100 * TOLERANCE * np.abs(run("steps")[kernel]).max()


def test_accumulated_gradients(run):
    """Four passes over a quarter of the batch each, against one with the batch statistics of the same quarters."""
    expected = run("permuted:4", batch_norm_groups=4)
    compare(run("steps", accumulate=4), expected, "accumulate=4")
    compare(run("steps", 8, accumulate=4, fsdp=2), expected, "accumulate=4, 8 devices, fsdp=2")
    assert largest_difference(run("steps"), expected) > TOLERANCE  # other batch statistics are no rounding


def test_batch_statistics_of_parts(run):
    expected = run("steps", batch_norm_groups=8)
    compare(run("steps", 8, batch_norm_groups=8), expected, "batch_norm_groups=8, 8 devices")
    assert largest_difference(run("steps"), expected) > TOLERANCE


def test_mixing_the_kernels_again_changes_nothing(run):
    compare(run("steps", remat_kernels=True), run("steps"), "remat_kernels")


@pytest.mark.parametrize(("devices", "processes"), [(8, 1), (4, 2)])
@pytest.mark.parametrize("size", [1, 47, 101])
def test_evaluation_counts_every_example_once(run, devices, processes, size):
    split = f"test[:{size}]"
    expected, ours = run("evaluate", test_split=split), run("evaluate", devices, processes, test_split=split)
    assert len(ours["loss"]) == size
    for name in ("loss", "preview_loss", "confidence"):
        np.testing.assert_allclose(np.sort(ours[name]), np.sort(expected[name]), rtol=1e-5, atol=1e-6)


def test_a_checkpoint_of_one_mesh_restores_on_another(run, tmp_path):
    """Written on 8 devices, read and written on 1, read on 4 and on 2 x 2: bit for bit."""
    saved = run(f"save:{tmp_path}", 8, fsdp=0)
    for devices, processes, fsdp in ((1, 1, 1), (4, 1, 2), (4, 2, 0)):
        restored = run(f"restore:{tmp_path}", devices, processes, fsdp=fsdp, seed=7)  # which would start elsewhere
        assert restored.keys() == saved.keys()
        for name in saved:
            np.testing.assert_array_equal(restored[name], saved[name], err_msg=name)


def test_what_is_refused(monkeypatch):
    monkeypatch.setattr("jax.device_count", lambda: 8)
    with pytest.raises(UserError, match="batch size 12 is no multiple of the 8 devices"):
        partition.create_mesh(12)
    with pytest.raises(UserError, match="config.fsdp=3 does not divide the 8 devices"):
        partition.create_mesh(16, 3)
    with pytest.raises(UserError, match="must be given together"):
        partition.initialize("localhost:1")
