"""The same run on any mesh: simulated devices in one process and in two give what one device gives."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from basisnet_jax import parsing
from basisnet_jax.data import pipeline
from basisnet_jax.distributed import partition
from basisnet_jax.distributed.processes import joined
from basisnet_jax.errors import UserError

WORKER = os.path.join(os.path.dirname(__file__), "partition_worker.py")
SIZES = (1, 47, 101)  # of test splits: less than a batch, and no multiple of one
EVALUATE = "evaluate:" + ",".join(map(str, SIZES))

# (devices, processes): what runs there, in this order, {name: (variant, fields of the config)}. The checkpoint goes
# from mesh to mesh; its reader has a seed that would start it elsewhere.
JOBS = {
    (8, 1): {
        "data": ("steps", {}),
        "fsdp": ("steps", {"fsdp": 0}),
        "accumulated": ("steps", {"fsdp": 2, "accumulate": 4}),
        "bfloat16": ("steps", {"fsdp": 2, "accumulate": 2, "dtype": "bfloat16"}),
        "parts": ("steps", {"batch_norm_groups": 8}),
        "evaluated": (EVALUATE, {}),
        "saved": ("save", {"fsdp": 0}),
    },
    (1, 1): {
        "plain": ("steps", {}),
        "bfloat16": ("steps", {"accumulate": 2, "dtype": "bfloat16"}),
        "accumulated": ("steps", {"accumulate": 4}),
        "permuted": ("steps:4", {"batch_norm_groups": 4}),
        "parts": ("steps", {"batch_norm_groups": 8}),
        "remat": ("steps", {"remat_kernels": True}),
        "evaluated": (EVALUATE, {}),
        "restored": ("restore", {"seed": 7}),
    },
    (4, 2): {
        "data": ("steps", {}),
        "fsdp": ("steps", {"fsdp": 0}),
        "evaluated": (EVALUATE, {}),
        "restored": ("restore", {"seed": 7, "fsdp": 2}),
    },
}


@pytest.fixture(scope="module")
def config(tiny, data_dir):
    """No randomness that depends on how a batch is cut, an optimizer that does not magnify rounding."""
    config = tiny(data_dir=data_dir, batch_size=32, eval_batch_size=48)
    config.network.dropout = config.preview.dropout = 0.0
    config.network.head_features = 64
    config.optimizer.update(name="rmsprop", learning_rate=0.01, epsilon=1e-3, second_moment_decay=0.9)
    pipeline.open(config).num_examples("train")
    return parsing.resolve(config)


@pytest.fixture(scope="module")
def results(config, tmp_path_factory):
    """{(devices, processes): {name: arrays}}."""
    folder = tmp_path_factory.mktemp("mesh")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    found = {}
    for (devices, processes), jobs in JOBS.items():
        here = folder / f"{devices}-{processes}"
        here.mkdir()
        paths = {"save": f"save:{folder}", "restore": f"restore:{folder}"}
        rows = {name: {"variant": paths.get(variant, variant), "fields": f} for name, (variant, f) in jobs.items()}
        (here / "jobs.json").write_text(json.dumps(rows))
        run_worker(devices, processes, [folder / "config.json", here / "jobs.json", here])
        found[devices, processes] = {name: dict(np.load(here / f"{name}.npz")) for name in jobs}
    return found


def run_worker(devices, processes, arguments):
    simulated = f"--xla_force_host_platform_device_count={devices // processes}"
    env = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {simulated}"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    workers = [
        subprocess.Popen(
            [sys.executable, WORKER, *map(str, arguments), *([address, str(processes), str(i)] * (processes > 1))],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]
    outputs = [worker.communicate(timeout=600)[0] for worker in workers]
    assert not any(worker.returncode for worker in workers), outputs[0][-3000:]


# Sums over the batch in another order: float32 rounding and what three steps make of it, relative to the `size` of each
# array.
TOLERANCE = 5e-6


def largest_difference(ours, expected):
    names = [name for name in expected if name != "split" and not name.startswith("metrics/")]
    assert set(names) == {name for name in ours if name != "split" and not name.startswith("metrics/")}
    return max(np.abs(ours[name] - expected[name]).max() / size(name, expected) for name in names)


def size(name, arrays):
    """The largest value; of running means, the layer's largest running deviation: the means cancel to almost 0."""
    largest = np.abs(arrays[name]).max()
    if name.endswith("norm/mean"):
        largest = max(largest, arrays[name.removesuffix("mean") + "var"].max() ** 0.5)
    return max(largest, 1e-3)


@pytest.mark.end_to_end
@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "name", "expected"),
    [
        ((8, 1), "data", "plain"),
        ((8, 1), "fsdp", "plain"),
        ((4, 2), "data", "plain"),
        ((4, 2), "fsdp", "plain"),
        ((1, 1), "remat", "plain"),
        ((1, 1), "accumulated", "permuted"),  # the passes have the batch statistics of the same parts
        ((8, 1), "accumulated", "permuted"),
        ((8, 1), "parts", "parts"),
    ],
)
def test_three_steps(results, where, name, expected):
    ours, expected = results[where][name], results[1, 1][expected]
    assert ours["split"] > 10 if JOBS[where][name][1].get("fsdp", 1) != 1 else ours["split"] == 0
    difference = largest_difference(ours, expected)
    print(f"{name} on {where[0]} devices in {where[1]} processes: largest difference {difference:.1e}")
    assert difference < TOLERANCE
    assert abs(ours["metrics/loss"] - expected["metrics/loss"]) < 1e-5


@pytest.mark.end_to_end
@pytest.mark.slow
def test_gradients_that_each_device_casts_are_the_same_but_for_rounding(results):
    """With batch statistics of the examples 0, 2, 4, ... and 1, 3, 5, ..., as the passes have them."""
    ours, expected = results[8, 1]["bfloat16"], results[1, 1]["bfloat16"]
    assert ours["split"] > 10
    for name in ("loss", "grad_norm"):
        assert ours[f"metrics/{name}"] == pytest.approx(expected[f"metrics/{name}"], rel=0.01)
    start = results[8, 1]["saved"]
    kernels = [name for name in start if name.startswith("params/") and name.endswith("kernel")]
    moved = [np.concatenate([(run[name] - start[name]).ravel() for name in kernels]) for run in (ours, expected)]
    assert np.linalg.norm(moved[0] - moved[1]) < 0.1 * np.linalg.norm(moved[1])


@pytest.mark.end_to_end
@pytest.mark.slow
def test_what_is_compared_can_differ(results):
    """The steps move it, and other batch statistics are no rounding."""
    here = results[1, 1]
    kernel = "params/specialist/last/conv/layer/kernel"
    moved = np.abs(here["plain"][kernel] - results[8, 1]["saved"][kernel]).max()
    assert moved > 20 * TOLERANCE * np.abs(here["plain"][kernel]).max()
    for name in ("permuted", "parts"):
        assert largest_difference(here[name], here["plain"]) > 10 * TOLERANCE


@pytest.mark.end_to_end
@pytest.mark.slow
@pytest.mark.parametrize("where", [(8, 1), (4, 2)])
def test_evaluation_counts_every_example_once(results, where):
    ours, expected = results[where]["evaluated"], results[1, 1]["evaluated"]
    for i, size in enumerate(SIZES):
        assert len(ours[f"{i}/loss"]) == size
        for name in ("loss", "preview_loss", "confidence"):
            a, b = (np.sort(rows[f"{i}/{name}"]) for rows in (ours, expected))
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.end_to_end
@pytest.mark.slow
@pytest.mark.parametrize("where", [(1, 1), (4, 2)])
def test_a_checkpoint_of_one_mesh_restores_on_another_bit_for_bit(results, where):
    saved, restored = results[8, 1]["saved"], results[where]["restored"]
    assert restored.keys() == saved.keys() and len(saved) > 50
    for name in saved:
        np.testing.assert_array_equal(restored[name], saved[name], err_msg=name)


def test_what_is_refused(monkeypatch):
    monkeypatch.setattr("jax.device_count", lambda: 8)
    with pytest.raises(UserError, match="batch size 12 is not a multiple of the 8 devices"):
        partition.create_mesh(12)
    with pytest.raises(UserError, match="config.fsdp=3 does not divide the 8 devices"):
        partition.create_mesh(16, 3)
    with pytest.raises(UserError, match="must be given together"):
        with joined("localhost:1"):
            pass
    with pytest.raises(UserError, match="--processes=2 --process=2, expected two numbers, the second the smaller"):
        with joined("localhost:1", "2", "2"):
            pass
