"""A plan, of a TPU: what is read from the compiled program, and that it follows from config and topology."""

import importlib.util
import json
import re

import jax
import pytest

from basisnet_jax import cli, models, plan
from basisnet_jax.data import pipeline
from basisnet_jax.errors import UserError

compiled = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiling for a TPU needs the extra tpu-plan"
)


def test_examples_of_imagenet_are_known_without_it(tiny):
    config = tiny(dataset="imagenet2012", train_split="train[10000:]")
    assert plan.train_examples(config) == (1_271_167, None)
    config.train_split = "validation[:10%]"
    assert plan.train_examples(config) == (5_000, None)
    for split, told in {"trian": "a split: train, validation", "train[:0]": "a split with examples in it"}.items():
        config.train_split = split
        with pytest.raises(UserError, match=re.escape(f"config.train_split={split!r}, expected {told}")):
            plan.train_examples(config)


@pytest.fixture(scope="module")
def planned(tiny):
    """`planned(topology, **overrides)`: the plan of the tiny config, each compiled once."""
    known = {}

    def of(topology, **overrides):
        key = (topology, *sorted(overrides.items()))
        if key not in known:
            known[key] = plan.plan(tiny(**{"batch_size": 64, "dtype": "bfloat16", **overrides}), topology, examples=640)
        return known[key]

    return of


@compiled
@pytest.mark.slow
def test_numbers_agree_with_each_other(planned, tiny):
    report = planned("v5e:2x2")
    chip, memory, seconds = plan.tpu.CHIPS["v5e"], report["memory"], report["seconds"]
    assert report["fits"] and report["devices"] == 4 and report["hbm"] == chip.memory
    assert all(size > 0 for size in memory.values())
    assert memory["total"] == sum(memory[part] for part in ("arguments", "outputs", "temporaries", "code"))
    assert seconds["step"] == max(report["flops"] / chip.flops["bfloat16"], report["hbm_traffic"] / chip.bandwidth) > 0
    assert 0 < report["hbm_traffic"] < report["bytes_accessed"]
    assert report["bound_by"] == ("compute" if report["intensity"] > report["balance"] else "memory")
    assert report["training"]["steps"] == 36 * 10
    assert report["training"]["hours"] == pytest.approx(360 * seconds["step"] / 3600)
    # Params, their average and two moments on every device, and its quarter of the images; tiles are filled up.
    assert memory["arguments"] > 4 * 4 * params(tiny()) + 64 // 4 * 16 * 16


def params(config) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(models.abstract(models.create_abstract(config)).params))


@pytest.mark.end_to_end
@compiled
@pytest.mark.slow
def test_a_larger_batch(planned):
    # Images large enough not to fit into memory on the chip; batches that fill up to two and to five tiles of 128.
    one, two = (planned("v5e:1x1", model="static", image_size=256, batch_size=size) for size in (256, 640))
    assert 2 < two["flops"] / one["flops"] < 3  # the optimizer's do not grow
    assert 2 < two["hbm_traffic"] / one["hbm_traffic"] < 3
    assert two["memory"]["temporaries"] > 2 * one["memory"]["temporaries"]
    assert two["memory"]["arguments"] > one["memory"]["arguments"]
    assert two["training"]["steps"] == one["training"]["steps"] / 2


@compiled
@pytest.mark.slow
def test_one_chip_talks_to_nobody(planned):
    report = planned("v5e:1x1", batch_size=16)
    assert report["devices"] == 1 and report["collectives"] == {}
    assert report["mixed_again"] and "are mixed again for the backward pass" in plan.table(report)
    # A quarter of the batch of four chips: the same work.
    assert 0.9 < report["flops"] / planned("v5e:2x2")["flops"] < 1.1


@compiled
@pytest.mark.slow
def test_collectives_follow_from_the_sharding(planned, tiny):
    data, fsdp = (
        planned("v5e:2x2", **{"network.head_features": 2048, "fsdp": n, "reduce_dtype": dtype})
        for n, dtype in ((1, "float32"), (0, "bfloat16"))
    )
    assert set(data["collectives"]) == {"all-reduce"}
    gradients = 4 * params(tiny(**{"network.head_features": 2048}))  # every one summed over the devices
    assert data["collectives"]["all-reduce"]["types"] == {"float32": data["collectives"]["all-reduce"]["bytes"]}
    assert gradients <= data["collectives"]["all-reduce"]["bytes"] < 1.5 * gradients
    assert fsdp["collectives"]["all-gather"]["count"] > 0
    assert any("bfloat16" in of["types"] for kind, of in fsdp["collectives"].items() if "reduce" in kind)
    assert fsdp["fsdp"] == 4 and fsdp["memory"]["arguments"] < data["memory"]["arguments"]


@pytest.mark.end_to_end
@compiled
@pytest.mark.slow
def test_a_batch_that_does_not_fit(planned):
    report = planned("v5e:2x2", model="static", image_size=2048)
    assert not report["fits"] and report["needed"] > report["available"] > 15 * 2**30
    proposal = report["proposal"]
    assert proposal["fits"] and proposal["batch_size"] in (32, 16, 8, 4)
    assert proposal["memory"]["total"] < report["available"]
    text = plan.table(report)
    assert "DOES NOT FIT" in text and f"--config.batch_size={proposal['batch_size']} fits" in text
    report = planned("v5e:2x2", model="static", image_size=2048 * 8, batch_size=4)
    assert report["proposal"] is None and "no smaller batch" in plan.table(report)


@compiled
@pytest.mark.slow
def test_json_and_table_show_one_plan(planned, config_file, capsys, monkeypatch):
    report = planned("v5e:2x2")
    monkeypatch.setattr(plan, "plan", lambda config, topology, examples: report)
    printed = []
    for flags in ([], ["--json"]):
        assert cli.main(["plan", config_file, "--topology=v5e:2x2", *flags]) == 0
        printed.append(capsys.readouterr().out)
    assert json.loads(printed[1]) == report
    assert plan.table(json.loads(printed[1])) == printed[0].strip()
    assert f"{report['memory']['temporaries'] / 2**30:.3f} GiB" in printed[0]
    assert f"{report['collectives']['all-reduce']['count']}" in printed[0]


@pytest.fixture
def config_file(tiny, tmp_path, data_dir):
    pipeline.open(tiny(data_dir=data_dir)).num_examples("train")  # prepares the digits, which prints
    path = tmp_path / "config.py"
    code = f"from conftest import tiny_config\n\ndef get_config():\n    return tiny_config(data_dir={data_dir!r})\n"
    path.write_text(code)
    return f"--config={path}"


@compiled
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], ["--topology is missing"]),
        (["--topology=x9:2x2"], ["'x9:2x2'", "v4, v5e, v5p, v6e, a100, h100, h200, b200", "v5e:4x4", "h100:8"]),
        (["--topology=v5e"], ["'v5e'", "v5e:4x4"]),
        (["--topology=v5e:0x4"], ["'v5e:0x4'"]),
        (["--topology=v5e:3x3"], ["'v5e:3x3' does not exist", "2x2x1"]),
        (["--topology=v5e:4x4", "--config.batch_size=100"], ["100", "16 devices"]),
        (["--topology=v5e:2x2", "--examples=many"], ["--examples='many'"]),
        (["--topology=v5e:2x2", "--examples=0"], ["--examples='0'", "above 0"]),
        (["--topology=v5e:2x2", "--examples=63"], ["64", "63"]),
    ],
)
def test_mistakes(flags, named, config_file, capsys):
    assert cli.main(["plan", config_file, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and all(text in err for text in named), err
