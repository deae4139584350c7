"""Every config in configs/ builds, and costs what is pinned here."""

import importlib
import pathlib

import jax
import pytest
from flax import nnx

import basisnet_jax.configs
from basisnet_jax import evaluate, madds, models
from basisnet_jax.configs import default

# (config, argument): parameters, multiply-adds
PINNED = {
    ("digits", ""): (547_756, 1_713_600),
    ("imagenet_basisnet_mv3", ""): (48_734_888, 289_808_640),
    ("imagenet_basisnet_mv2", ""): (39_717_568, 366_479_168),
    ("imagenet_static", ""): (5_483_032, 216_589_760),
    ("imagenet_static", "network=mobilenet_v2"): (3_504_872, 300_774_272),
    ("imagenet_static", "network=efficientnet_b0"): (5_288_548, 385_814_752),
}


def test_every_config_is_pinned():
    folder = pathlib.Path(basisnet_jax.configs.__file__).parent
    names = {path.stem for path in folder.glob("*.py")} - {"__init__", "default"}
    assert names == {name for name, _ in PINNED}


@pytest.mark.parametrize(("name", "arg"), PINNED)
def test_parameters_and_multiply_adds(name, arg):
    config = importlib.import_module(f"basisnet_jax.configs.{name}").get_config(arg)
    model = models.create_abstract(config)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    cost = madds.total(madds.count(model, evaluate.image_shape(config)))
    assert (parameters, cost) == PINNED[name, arg]


def test_arguments():
    assert default.parse_arg("bases=4,width=0.5", bases=16, width=1.0, seed=0) == dict(bases=4, width=0.5, seed=0)
    for arg, words in (("basis=4", "'basis' is unknown, expected bases"), ("bases=x", "bases=<int>")):
        with pytest.raises(ValueError, match=words):
            default.parse_arg(arg, bases=16)
