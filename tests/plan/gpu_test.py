"""A plan for GPUs: their compiler must be there and fit, and what is read from a program follows from the config."""

import importlib.metadata
import types

import jax
import pytest

from basisnet_jax import models, plan
from basisnet_jax.errors import UserError
from basisnet_jax.plan import gpu, machine


def version() -> str | None:
    try:
        return importlib.metadata.version(gpu.PLUGIN)
    except importlib.metadata.PackageNotFoundError:
        return None


compiled = pytest.mark.skipif(
    version() != jax.__version__, reason="compiling for a GPU needs the extra gpu-plan, of the version of jax"
)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: jax.__version__)


def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("found", "told"),
    [(missing, "needs jax-cuda13-plugin"), (lambda name: "0.1.2", "jax-cuda13-plugin is 0.1.2 and jax")],
)
def test_the_plugin_must_be_that_of_jax(monkeypatch, found, told):
    monkeypatch.setattr(importlib.metadata, "version", found)
    with pytest.raises(UserError, match=told) as error:
        gpu.find_machine("h100:8")
    assert f"pip install 'jax-cuda13-plugin=={jax.__version__}'" in str(error.value)


@pytest.mark.parametrize("topology", ["h100", "h100:", "h100:0", "h100:8x4x2", "h100:8x", "h100:10000", "h100:-1"])
def test_mistakes(topology, installed):
    with pytest.raises(UserError, match="such as h100:8, or h100:8x4"):
        gpu.find_machine(topology)


@pytest.mark.parametrize("given", ["much", "nan", "0", "-1"])
def test_a_share_of_memory_that_is_none(given, installed, monkeypatch):
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", given)
    with pytest.raises(UserError, match=f"XLA_CLIENT_MEM_FRACTION='{given}', expected a number above 0"):
        gpu.find_machine("h100:1")


def test_too_much_memory():
    """XLA compiles a program of any size."""
    sizes = dict.fromkeys(("argument", "output", "alias", "temp", "generated_code"), 0) | {"argument": 60, "temp": 50}
    sizes = types.SimpleNamespace(**{f"{name}_size_in_bytes": size for name, size in sizes.items()})
    program = types.SimpleNamespace(memory_analysis=lambda: sizes)
    lowered = types.SimpleNamespace(compile=lambda: program)
    chip = machine.Chip({}, 1.0, 200, 110)
    assert gpu.compile(lowered, chip) is program
    with pytest.raises(machine.TooLarge) as error:
        gpu.compile(lowered, chip._replace(available=109))
    assert (error.value.needed, error.value.available) == (110, 109)


@compiled
@pytest.mark.parametrize(("topology", "devices", "hosts"), [("a100:1", 1, 1), ("h200:8", 8, 1), ("b200:4x2", 8, 2)])
def test_the_compiler_takes_every_card(topology, devices, hosts, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    found = gpu.find_machine(topology)
    assert found.platform == "gpu" and len(found.devices) == devices
    assert len({device.process_index for device in found.devices}) == hosts
    assert found.chip.available == found.chip.memory / 2


@compiled
@pytest.mark.slow
def test_a_plan_for_eight_cards(tiny):
    config = tiny(batch_size=64, dtype="bfloat16")
    report = plan.plan(config, "h100:8", examples=640)
    chip, memory, seconds = gpu.find_machine("h100:8").chip, report["memory"], report["seconds"]
    assert report["fits"] and report["devices"] == 8 and report["available"] == 0.75 * report["hbm"]
    assert memory["total"] == sum(memory[part] for part in ("arguments", "outputs", "temporaries", "code"))
    assert seconds["flops"] == report["flops"] / chip.flops["bfloat16"] > 0
    assert seconds["traffic"] == report["hbm_traffic"] / chip.bandwidth > 0
    assert report["launches"] > 0 and "bytes_accessed" not in report
    # Every gradient is summed over the devices, in float32.
    reduced = report["collectives"]["all-reduce"]
    assert reduced["types"] == {"float32": reduced["bytes"]}
    params = models.abstract(models.create_abstract(config)).params
    assert reduced["bytes"] > 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    shown = plan.table(report)
    assert f"{report['launches']:,}" in shown and all(what in shown for what in gpu.UNKNOWN)
