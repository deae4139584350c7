"""Shared by all tests: one compilation cache, and warnings from our own code as errors."""

import os
import pathlib
import subprocess
import tempfile
from importlib.metadata import version

ROOT = pathlib.Path(__file__).parents[1]

# Processes that tests start can import this file too.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
# Compiling is most of the suite's time; the cache also serves the processes that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "basisnet_jax_test_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# There is little to run, so code that compiles fast, but is not fast itself, makes the suite take half as long. With
# BASISNET_TEST_XLA=default tests see what users run: XLA's own flags, and jax as it is.
AS_USERS = os.environ.get("BASISNET_TEST_XLA") == "default"
QUICK_COMPILATION = {} if AS_USERS else {"xla_backend_optimization_level": 0}
OLD_XLA = version("jaxlib").startswith("0.10.")  # a later XLA ends the process if it is given a flag of this one alone
if OLD_XLA and not AS_USERS:
    QUICK_COMPILATION |= {"xla_cpu_use_fusion_emitters": False}
if QUICK_COMPILATION:
    os.environ.setdefault(
        "XLA_FLAGS", " ".join(f"--{flag}={value}".lower() for flag, value in QUICK_COMPILATION.items())
    )
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import numpy as np
import pytest
from basisnet_jax.configs import digits

from basisnet_jax import cli, models, parsing
from basisnet_jax.workdir import checkpoint, runs

LONGEST = ("plan", "partition", "faults", "slurm", "docs", "distillation", "parity", "loop", "export")


def pytest_collection_modifyitems(items):
    """The files that take longest begin first, so that no process is left with one of them when the others are done."""
    order = {f"{name}_test": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def tiny_config(**overrides):
    """The digits config with the smallest networks that have every part; fields set by their dotted names."""
    config = digits.get_config("bases=3,width=0.1")
    config.image_size = 16
    config.preview.image_size = 8
    for network in (config.network, config.preview):
        network.num_stages = 1
        network.stage_strides = (2,)
        network.head_features = 12
    config.update_from_flattened_dict(overrides)
    return config


@pytest.fixture(scope="session")
def tiny():
    return tiny_config


@pytest.fixture(scope="session")
def make_run():
    """`make_run(config, workdir, step=3)`: saves weights so random that heads and images are of different opinions."""

    def make(config, workdir, step=3):
        functions = models.functional(models.create(config))
        random = np.random.default_rng(2)
        noisy = jax.tree.map(lambda leaf: leaf + random.normal(0, 0.6, leaf.shape).astype(leaf.dtype), functions.params)
        state = {"params": functions.params, "batch_stats": functions.batch_stats}
        state |= {"ema_params": noisy, "ema_batch_stats": functions.batch_stats}
        runs.claim(parsing.resolve(config), str(workdir))
        with checkpoint.manager(str(workdir), keep=2) as checkpoints:
            checkpoint.save(checkpoints, step, state)
        return str(workdir)

    return make


@pytest.fixture
def refused(capsys, record_property):
    """`refused(*argv, code=2)`: the one line on stderr with which the command ends, and it prints nothing else.

    What it did is recorded for experiments/odd_inputs.py.
    """

    def run(*argv, code=2):
        found = cli.main([str(argument) for argument in argv])
        out, err = capsys.readouterr()
        record_told(record_property, found, err)
        assert (found, out) == (code, "") and err.startswith("basisnet: ") and err.count("\n") == 1, (found, out, err)
        return err.removeprefix("basisnet: ").rstrip("\n")

    return run


def record_told(record_property, code, err):
    """Exit code and stderr of a command, for experiments/odd_inputs.py."""
    record_property("code", code)
    record_property("lines", len(err.splitlines()))
    record_property("traceback", "Traceback" in err)


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(size)`: an empty file system of a size such as "2m"; `mount -o remount` makes it larger."""
    disk = tmp_path / "disk"

    def make(size):
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=False).returncode:
            pytest.skip("making a small file system takes root")
        return disk

    yield make
    if disk.is_mount():
        subprocess.run(["umount", disk], check=True)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where the digits are prepared once for all tests."""
    return str(tmp_path_factory.mktemp("data"))


def trace_quickly(patch=setattr):
    """Half of all tracing is the message with which jax 0.10 refuses flax, who asks each traced value's sharding."""
    if AS_USERS:
        return

    def refuse(_):
        raise AttributeError("sharding")

    patch(jax.core.Tracer, "sharding", property(refuse))


@pytest.fixture(scope="session", autouse=True)
def quick_tracing():
    with pytest.MonkeyPatch.context() as patch:
        trace_quickly(patch.setattr)
        yield
