"""Networks of one's own by name: from the command line to exports, and what is refused."""

import contextlib
import json
import sys

import numpy as np
import pytest
from basisnet_jax.configs import digits

import basisnet_jax
from basisnet_jax import basis, cli, models, parsing
from basisnet_jax.distributed import preemption
from basisnet_jax.errors import UserError
from basisnet_jax.networks import own
from basisnet_jax.training import initial_weights
from basisnet_jax.workdir import runs

CODE = """
import functools

from flax import nnx


class Small(nnx.Module):
    def __init__(self, num_classes, channels, rngs, features=4, more=0):
        convs = [nnx.Conv(inputs, features, (3, 3), 2, rngs=rngs) for inputs in (channels, features)]
        self.body = nnx.List(convs)
        self.norm = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(features, num_classes + more, rngs=rngs)

    def __call__(self, x, training=False):
        x = nnx.relu(self.norm(self.body[0](x), use_running_average=not training))
        return self.head(nnx.relu(self.body[1](x)).mean(axis=(1, 2)))


def anything(num_classes, rngs, **fields):
    return Small(num_classes, 1, rngs, **fields)


wide = functools.partial(Small, features=8)


def static(num_classes, rngs, width=4.0):
    return Small(num_classes, 1, rngs, features=int(width))


def number(num_classes, rngs):
    return 3


def needs(num_classes, rngs, features, *, depth):
    return Small(num_classes, 1, rngs, features=features)


def no_classes(rngs):
    return Small(3, 1, rngs)


class Fails(Small):
    def __call__(self, x):
        return self.hed(x)


class Named(nnx.Module):  # as many networks name their parts
    def __init__(self, num_classes, channels, rngs, layers=1):
        self.features = nnx.Sequential(nnx.Conv(channels, 4, (3, 3), 2, rngs=rngs), nnx.relu)
        head = [nnx.Linear(4, 4, rngs=rngs) for _ in range(layers - 1)] + [nnx.Linear(4, num_classes, rngs=rngs)]
        self.classifier = nnx.Sequential(*head) if head[1:] else head[0]

    def __call__(self, x):
        return self.classifier(self.features(x).mean(axis=(1, 2)))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a module whose name no other test has."""
    name = f"mine_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


def config_of(*fields):
    return parsing.read_config(["--config=digits", *(f"--config.{field}" for field in fields)])


@pytest.mark.end_to_end
@pytest.mark.slow
def test_the_command_takes_a_network_of_ones_own(folder, data_dir, tmp_path, capsys):
    fields = [f"network.name={folder}:wide", f"preview.name={folder}:anything", "preview.features=2", "num_epochs=1"]
    fields += [f"data_dir={data_dir}", "image_size=16", "preview.image_size=8", "basis.num_bases=3", "batch_size=128"]
    flags = ["--config=digits", *(f"--config.{field}" for field in fields)]
    assert cli.main(["madds", *flags]) == 0
    assert "specialist/body/1 " in capsys.readouterr().out
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:  # a signal after step 4
        patch.setattr(preemption, "watched", lambda: contextlib.nullcontext(lambda step: step == 4))
        cli.main(["train", *flags, f"--workdir={run}"])
    assert cli.main(["train", *flags, f"--workdir={run}"]) == 0
    assert "going on after step 4" in capsys.readouterr().out
    written = json.loads((run / "config.json").read_text())
    assert written["network"] == {"name": f"{folder}:wide"}
    assert written["preview"] == {"name": f"{folder}:anything", "features": 2, "image_size": 8}
    assert runs.load_config(str(run)).to_dict() == written
    read = runs.load(str(run))
    means = [read.batch_stats[part]["norm"]["mean"] for part in ("specialist",)]
    assert all(np.abs(mean).max() > 1e-3 for mean in means)  # it was told that it trains
    assert cli.main(["evaluate", f"--workdir={run}"]) == 0
    for form in ("safetensors", "stablehlo"):
        assert cli.main(["export", f"--workdir={run}", f"--format={form}", f"--output={tmp_path / form}"]) == 0
        images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 1), np.uint8)
        one, other = (basisnet_jax.load(place).predict(images).probabilities for place in (run, tmp_path / form))
        np.testing.assert_allclose(one, other, atol=1e-5)
    extracted = tmp_path / "specialist"
    assert cli.main(["export", f"--workdir={run}", "--format=specialist", "--class=3", f"--output={extracted}"]) == 0
    assert type(runs.load(str(extracted)).model.network).__name__ == "Small"
    assert cli.main(["report", f"--workdir={run}"]) == 0
    assert f"{folder}:wide, 16 x 16 pixels" in (run / "report.html").read_text()


def test_what_is_given_is_what_the_factory_gets(folder):
    config = config_of("network.features=6", f"network.name={folder}:Small", "model=static")  # in any order
    assert config.network.to_dict() == {"name": f"{folder}:Small", "features": 6}
    assert models.create(config).network.body[0].kernel.shape == (3, 3, 1, 6)
    for given in (f"{{'name': '{folder}:anything', 'features': 5}}", f"{{'features': 5, 'name': '{folder}:anything'}}"):
        together = config_of(f"network={given}", "model=static")
        assert models.create(together).network.head.in_features == 5
    # In a config file the section is written anew.
    config = digits.get_config()
    config.model, config.network = "static", type(config)({"name": f"{folder}:static"})
    assert models.create(config).network.head.in_features == 4
    # Convolutions have bases; `config.basis.layers` names others, and a packaged preview goes with it.
    small = ["preview.num_stages=1", "preview.stage_strides=2", "preview.width=0.1", "preview.image_size=16"]
    model = models.create(config_of(f"network.name={folder}:wide", *small))
    assert list(basis.basis_layers(model.specialist)) == ["body/0", "body/1"]
    model = models.create(config_of(f"network.name={folder}:wide", "basis.layers=head", *small))
    assert list(basis.basis_layers(model.specialist)) == ["head"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            ["network.name=absent_:f"],
            "module 'absent_' is neither installed nor in .*; expected PACKAGE.MODULE:FACTORY",
        ),
        (["network.name=MINE:wied"], "has no callable 'wied'; did you mean MINE:wide"),
        (["network.name=MINE:static", "network.depth=3"], "takes num_classes, rngs, width; depth=3 given"),
        (["network.name=MINE:static", "dtype=bfloat16"], "takes no dtype; config.dtype=bfloat16 given"),
        (["network.name=MINE:no_classes"], "takes rngs; num_classes=10 given"),
        (["network.name=MINE:number"], "returned int, expected an nnx.Module"),
        (
            ["network.name=MINE:needs"],
            "needs features, depth; give config.network.features, or config.preview.features",
        ),
        (["network.name=MINE:anything", "network.features=x"], r"MINE:anything', line \d+ of .*: TypeError"),
        (["network.name=MINE:anything", "network.more=1"], r"gives \(1, 11\) for an image of .*, expected \(1, 10\)"),
        (["network.name=MINE:Fails"], r"line \d+ of .*: AttributeError: 'Fails' object has no attribute 'hed'"),
        (
            ["network.name=MINE:static", "network.rngs=1"],
            "config.network.rngs=1 is not a field of a network, set config.seed",
        ),
        (["network.name=MINE:static", "batch_norm_groups=2"], "network/norm is an nnx.BatchNorm, which has no groups"),
        (["network.name=MINE:static", "model=basisnet", "basis.layers=x"], "config.basis, .* no layer of the network"),
    ],
)
def test_mistakes_are_told_in_one_line(folder, fields, words):
    config = config_of("model=static", *(field.replace("MINE", folder) for field in fields))
    with pytest.raises(UserError, match=words.replace("MINE", folder)) as told:
        models.create(config)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_preview_may_have_modules_called_features_and_classifier(folder, layers):
    fields = [f"network.name={folder}:wide", f"preview.name={folder}:Named", f"preview.layers={layers}"]
    model = models.create(config_of(*fields, "image_size=16", "preview.image_size=8"))
    assert model.coefficient_head.in_features == 4


def test_the_error_names_the_network_that_failed(folder, tmp_path):
    (tmp_path / f"{folder}_too.py").write_text(CODE)
    with pytest.raises(UserError, match=rf"^network '{folder}_too:Fails', line \d+ of .*_too.py: AttributeError"):
        models.create(config_of(f"network.name={folder}:Small", f"preview.name={folder}_too:Fails"))


def test_a_packaged_network_in_the_place_of_ones_own_has_its_own_fields(folder):
    config = config_of(f"preview.name={folder}:wide", "preview.name=mobilenet_v2", "preview.image_size=16")
    assert config.preview.name == "mobilenet_v2" and (config.preview.width, config.preview.image_size) == (1.0, 16)
    parsing.resolve(config)


def test_what_a_class_or_a_partial_takes(folder):
    assert list(own.parameters(own.find(f"{folder}:Small"))) == ["num_classes", "channels", "rngs", "features", "more"]
    assert list(own.parameters(own.find(f"{folder}:wide"))) == ["num_classes", "channels", "rngs", "features", "more"]
    assert list(own.parameters(own.find(f"{folder}:static"))) == ["num_classes", "rngs", "width"]


def test_own_networks_start_from_each_others_weights(folder, tiny, make_run, tmp_path):
    """Also where an attribute has the name of what wraps layers, such as `body`."""
    both = ["image_size=16", "preview.image_size=8", "init_noise=0.0", f"network.name={folder}:wide"]
    static = make_run(config_of("model=static", *both), tmp_path / "static")
    config = config_of(*both, f"preview.name={folder}:wide", f"init_from={static}", f"preview_init_from={static}")
    functions = initial_weights.initialized(config, models.functional(models.create(config)))
    source = runs.load(static).params["network"]
    ours = functions.params["specialist"]["body"][1]["layer"]["kernel"]
    np.testing.assert_array_equal(ours[2], source["body"][1]["kernel"])
    np.testing.assert_array_equal(
        functions.params["preview"]["network"]["head"]["layer"]["bias"], source["head"]["bias"]
    )


def test_its_head_starts_anew_with_other_classes(folder, make_run, tmp_path, data_dir):
    saved = make_run(config_of(f"network.name={folder}:Small", "model=static"), tmp_path / "run")
    config = config_of(f"network.name={folder}:Small", "model=static", f"init_from={saved}", "num_classes=7")
    own = models.functional(models.create(config))
    params, theirs = initial_weights.initialized(config, own).params["network"], runs.load(saved).params["network"]
    np.testing.assert_array_equal(params["body"][0]["kernel"], theirs["body"][0]["kernel"])
    np.testing.assert_array_equal(params["head"]["kernel"], own.params["network"]["head"]["kernel"])


def test_it_is_looked_for_before_anything_is_read(folder, refused, tmp_path):
    flags = ["--config=digits", "--config.data_dir=/nowhere", f"--workdir={tmp_path}/run"]
    line = refused("train", *flags, f"--config.network.name={folder}:Smal")
    assert f"{folder}" in line and "Small" in line


def test_create_model_leaves_networks_of_ones_own_to_basisnet():
    with pytest.raises(ValueError, match="call BasisNet"):
        basisnet_jax.create_model("mobilenet_v2", 2, network__name="mine:Net")
