"""The command line: a user's mistake ends in one line that names it and exit code 2; results are as documented."""

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys

import conftest
import pytest

from basisnet_jax import cli, early_exit, export, flags, parsing
from basisnet_jax.data import pipeline
from basisnet_jax.export import tflite
from basisnet_jax.sweep import launchers
from basisnet_jax.training import import_weights
from basisnet_jax.workdir import runs

CONFIGS = conftest.ROOT / "configs"
CONFIG = f"--config={CONFIGS / 'digits.py'}"


@pytest.fixture(scope="module")
def data_dir(data_dir):
    """With the digits in it: TFDS tells at length when it prepares them."""
    config = parsing.read_config([CONFIG, f"--config.data_dir={data_dir}"])
    pipeline.open(config).num_examples("train")
    return data_dir


@pytest.fixture
def fails(capsys):
    """`fails(*argv)`: the one line that the command prints; it has to end with exit code 2 and print nothing else."""

    def run(*argv: str) -> str:
        assert cli.main([str(argument) for argument in argv]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith("basisnet: ") and "Traceback" not in err, err
        return err

    return run


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["tain"], ["'tain'", "train", "evaluate", "madds"]),
        (["train", CONFIG], ["--workdir is missing"]),
        (["train", "--workdir=DIR"], ["--config is missing"]),
        (["train", CONFIG, "--workdir=DIR", "--wrokdir=x"], ["--wrokdir is unknown, did you mean --workdir?"]),
        (["train", "--wrokdir=x"], ["--wrokdir is unknown, did you mean --workdir?"]),
        (["train", CONFIG, "--workdir=DIR", "--zzz"], ["--zzz is unknown, expected one of", "--config, --workdir"]),
        (["train", CONFIG, "--workdir=DIR", "stray"], ["'stray'"]),
        (["train", CONFIG, "--workdir=DIR", "--config.nonsense=1"], ["'nonsense'", "configs/default.py"]),
        (["train", CONFIG, "--workdir=DIR", "--config.optimizer.nonsense=1"], ["'nonsense'"]),
        (["train", CONFIG, "--workdir=DIR", "--config.batch_size=abc"], ["config.batch_size", "'abc'", "int"]),
        (["train", "--config=DIR/none.py", "--workdir=DIR"], ["DIR/none.py", "does not exist"]),
        (["train", "--config=", "--workdir=DIR"], ["config file ''"]),
        (["train", "--config=digts", "--workdir=DIR"], ["'digts' does not exist", "such as digits"]),
        (["train", "--config=x", "--workdir=DIR"], ["'x' does not exist", "cifar", "digits", "imagenet_static"]),
        (["train", "--config=DIR/digits.py", "--workdir=DIR"], ["does not exist", "--config=digits"]),
        (["train", "--config=digits:basis=3", "--workdir=DIR"], ["'basis'", "bases, width, seed"]),
        (["train", CONFIG + ":basis=3", "--workdir=DIR"], ["'basis'", "bases, width, seed"]),
        (["train", CONFIG + ":bases=many", "--workdir=DIR"], ["'bases=many'", "bases=<int>"]),
        (["evaluate"], ["--workdir is missing"]),
        (["evaluate", "--workdir=DIR", "--threshold=high"], ["--threshold='high'", "number"]),
        (["evaluate", "--workdir=DIR", "--threshold=nan"], ["--threshold='nan'", "number"]),
        (["evaluate", "--workdir=DIR"], ["DIR/config.json is missing"]),
        (["evaluate", "--workdir=DIR/none"], ["DIR/none/config.json is missing"]),
        (["predict", "a.png"], ["or --export=", "is missing"]),
        (["predict", "--workdir=DIR", "a.png", "--jsno"], ["--jsno is unknown, did you mean --json?"]),
        (["predict", "--workdir=DIR", "a.png", "--json=true"], ["--json takes no value, given 'true'"]),
        (["predict", "--workdir=DIR", "a.png", "--thresh=1"], ["--thresh is unknown, did you mean --threshold?"]),
        (["predict", "--workdir=DIR", "a.png", "--threshold"], ["--threshold is given without a value"]),
        (["predict", "--workdir=DIR", "a.png", "--threshold=nan"], ["--threshold='nan'", "number"]),
        (["predict", "--workdir=DIR/none", "a.png"], ["DIR/none/config.json is missing"]),
        (["predict", "--workdir=DIR", "a.png", "--json", "--csv"], ["--json and --csv", "one of them"]),
        (["calibrate", "--max_drop=0.1"], ["--workdir is missing"]),
        (["calibrate", "--workdir=DIR"], ["--target_madds=N or --max_drop=FRACTION"]),
        (
            ["calibrate", "--workdir=DIR", "--target_madds=1e6", "--max_drop=0.1"],
            ["--target_madds and --max_drop given"],
        ),
        (["calibrate", "--workdir=DIR", "--target_madds=few"], ["--target_madds='few'", "number"]),
        (["calibrate", "--workdir=DIR", "--max_drop=3"], ["--max_drop=3", "from 0 to 1"]),
        (["calibrate", "--workdir=DIR", "--max_drop=0", "--criterion=sum"], ["'sum'", "max_softmax, margin, entropy"]),
        (["calibrate", "--workdir=DIR/none", "--max_drop=0"], ["DIR/none/config.json is missing"]),
        (["madds"], ["--config is missing"]),
        (["madds", CONFIG, "--share=1.5"], ["--share='1.5'", "a number from 0 to 1"]),
        (["plan", CONFIG, "--topology=v5e:1x1", "--examples=0.5"], ["--examples='0.5'", "a whole number above 0"]),
        (["sweep"], ["--sweep and --workdir are missing"]),
        (["sweep", "--sweep=x.py", "--workdir=DIR", "--jobs=0"], ["--jobs='0'", "a whole number above 0"]),
        (["sweep", "--sweep=x.py", "--workdir=DIR", "--cluster=k8s"], ["--cluster='k8s'", "local, slurm"]),
        (["report", "--workdir=DIR", "--images=inf"], ["--images='inf'", "a whole number above 0"]),
        (["import", "--network=x", "--weights=y", "--workdir=DIR", "--origin=jax"], ["'jax'", "tensorflow, pytorch"]),
        (["export", "--workdir=DIR", "--output=DIR", "--format=pt"], ["--format='pt'", "one of tflite, onnx"]),
        (["calibrate", "--workdir=DIR", "--max_drop=-1"], ["--max_drop='-1'", "not below 0"]),
        (["calibrate", "--workdir=DIR", "--target_madds=0"], ["--target_madds='0'", "above 0"]),
        (["madds", CONFIG, "--config.network.name=resnet50"], ["'resnet50'", "mobilenet_v3_small"]),
    ],
)
def test_mistakes_on_the_command_line(fails, tmp_path, argv, named):
    argv = [argument.replace("DIR", str(tmp_path)) for argument in argv]
    error = fails(*argv)
    for text in named:
        assert text.replace("DIR", str(tmp_path)) in error
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("dataset=digit", ["'digit'", "digits"]),
        ("num_classes=11", ["config.num_classes is 11", "has 10"]),
        ("network.name=resnet50", ["'resnet50'", "mobilenet_v3_small"]),
        ("model=both", ["'both'", "static"]),
        ("optimizer.name=sgd", ["'sgd'", "adamw"]),
        ("optimizer.schedule=step", ["'step'", "cosine"]),
        ("batch_size=2000", ["2000", "1077"]),
        ("validation_split=val", ["'val'", "validation (360)"]),
        ("test_split=val", ["'val'", "test (360)"]),
    ],
)
def test_mistakes_in_a_config(fails, data_dir, tmp_path, override, named):
    error = fails("train", CONFIG, f"--workdir={tmp_path}/run", f"--config.data_dir={data_dir}", f"--config.{override}")
    for text in named:
        assert text in error
    # Nothing was started: the corrected command can have this workdir.
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_written(fails, data_dir, tmp_path):
    (tmp_path / "file").write_text("mine")
    error = fails("train", CONFIG, f"--config.data_dir={data_dir}", f"--workdir={tmp_path}/file/run")
    assert f"{tmp_path}/file/run" in error and "Not a directory" in error
    fails("train", CONFIG, f"--config.data_dir={data_dir}", f"--workdir={tmp_path}/file")
    assert (tmp_path / "file").read_text() == "mine"


def test_evaluate_without_a_checkpoint(fails, tmp_path):
    runs.claim(parsing.resolve(parsing.read_config([CONFIG])), str(tmp_path))
    assert f"no checkpoint in {tmp_path}/checkpoints" in fails("evaluate", f"--workdir={tmp_path}")
    (tmp_path / "config.json").write_text("{")
    assert f"{tmp_path}/config.json" in fails("evaluate", f"--workdir={tmp_path}")
    assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.slow
def test_a_mistake_as_a_process(tmp_path):
    """What libraries print when they are imported must not stand beside the one line."""
    command = [shutil.which("basisnet", path=os.path.dirname(sys.executable)), "train", CONFIG]
    command += [f"--workdir={tmp_path}/run", "--config.dataset=no_such_set"]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr.count("\n") == 1 and "'no_such_set'" in process.stderr


def test_a_fault_of_ours_is_not_called_the_users(monkeypatch, capsys):
    def broken(given):
        raise RuntimeError("boom")

    monkeypatch.setitem(cli.VERBS, "madds", broken)
    assert cli.main(["madds", CONFIG]) == 1
    assert "RuntimeError: boom" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["--help"], ["help"]])
def test_help_names_every_verb(capsys, argv):
    assert cli.main(argv) == 0
    printed = capsys.readouterr().out
    for verb, run in cli.VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape(run.__doc__)}$", printed, re.MULTILINE)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_verb_names_each_flag_and_its_default(verb, capsys):
    printed = []
    for argv in ([verb, "--help"], ["help", verb], [verb, "--workdir=x", "-h"]):
        assert cli.main(argv) == 0
        printed.append(" ".join(capsys.readouterr().out.split()))
    assert printed[0] == printed[1] == printed[2] and cli.VERBS[verb].__doc__ in printed[0]
    parser = flags.create_parsers(cli.VERBS)[verb]
    one_is_required = [action for group in parser._mutually_exclusive_groups for action in group._group_actions]
    for action in parser._actions:
        assert " ".join(action.help.split()) in printed[0]
        if action.option_strings and not action.required and action not in one_is_required and action.dest != "help":
            assert re.search(r"\(default: .+\)$", action.help), action.option_strings
            assert action.default in (None, False, argparse.SUPPRESS) or f"default: {action.default})" in action.help


def test_choices_are_those_of_the_modules():
    """Which `flags.py` repeats, for `--help` without JAX."""
    assert (*export.FORMATS, "specialist") == flags.FORMATS
    assert flags.PRECISIONS == tflite.PRECISIONS == tuple(export.TOLERANCES)
    assert flags.CRITERIA == early_exit.CRITERIA
    assert tuple(launchers.CLUSTERS) == flags.CLUSTERS
    assert tuple(import_weights.ORIGINS) == flags.ORIGINS


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"basisnet {importlib.metadata.version('basisnet_jax')}\n"


def test_help_does_not_wait_for_jax_or_tensorflow():
    code = """
import sys
from basisnet_jax import cli
assert cli.main(["train", "--help"]) == cli.main(["configs"]) == 0
sys.exit(str({"jax", "flax", "tensorflow", "numpy"} & set(sys.modules) or ""))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize(
    ("overrides", "field", "value"),
    [
        ("remat_kernels=None", "remat_kernels", None),
        ("remat_kernels", "remat_kernels", True),
        ("remat_kernels=False", "remat_kernels", False),
        ("network.head_features=None", "network.head_features", None),
        ("network.head_features=64", "network.head_features", 64),
        ("network.drop_connect=0.2", "network.drop_connect", 0.2),
        ("data_dir=None", "data_dir", "None"),  # text is text
        ("data_dir=", "data_dir", ""),
        ("mean=0.5,0.5,0.5", "mean", (0.5, 0.5, 0.5)),
        ("mean=(0.5, 1, 0.5)", "mean", (0.5, 1.0, 0.5)),
        ("mean=[0.5,0.5]", "mean", (0.5, 0.5)),
        ("mean=0.5", "mean", (0.5,)),
        ("network.stage_strides=(2,2,2)", "network.stage_strides", (2, 2, 2)),
        ("network.stage_strides=2,2", "network.stage_strides", (2, 2)),
        ("network.stage_strides=None", "network.stage_strides", None),
        ("augment.flip=False", "augment.flip", False),
        ("augment.flip=true", "augment.flip", True),
        ("augment.flip", "augment.flip", True),
        ("optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
        ("seed=-3", "seed", -3),
        ("basis.paths={'pointwise': 'folded'}", "basis.paths.pointwise", "folded"),
    ],
)
def test_overrides(overrides, field, value):
    found = parsing.read_config([CONFIG, f"--config.{overrides}"])
    for name in field.split("."):
        found = found[name]
    assert found == value and type(found) is type(value)


def test_overrides_stand_anywhere_and_the_last_one_wins():
    before = ["--config.augment.flip", "--config.seed", "-3", "--config.mean", "0.5,0.5", "--config.mean=0.4"]
    argv = [*before, "--config", "digits", "--workdir", "x", "--noconfig.optimizer.match_static"]
    given = flags.read(flags.create_parsers(cli.VERBS)["train"], [*argv, "--config.augment.flip", "False"])
    config = given.config
    assert (given.workdir, config.seed, config.augment.flip, config.mean) == ("x", -3, False, (0.4,))
    assert config.optimizer.match_static is False


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("remat_kernels=maybe", ["config.remat_kernels='maybe'", "True or False or None"]),
        ("network.head_features=1.5", ["config.network.head_features='1.5'", "int or None"]),
        ("seed=None", ["config.seed='None'", "int"]),
        ("seed", ["config.seed is given without a value", "int"]),
        ("mean=abc", ["config.mean='abc'", "tuple such as (0.3,)"]),
        ("mean=0.5,x", ["config.mean='0.5,x'", "tuple"]),
        ("mean=(0.5,", ["config.mean='(0.5,'", "tuple"]),
        ("mean=(0.5,True)", ["config.mean='(0.5,True)'", "tuple"]),
        ("network.stage_strides=2.5,2", ["config.network.stage_strides='2.5,2'", "tuple such as (2, 2, 2, 1) or None"]),
        ("augment.flip=2", ["config.augment.flip='2'", "True or False"]),
        ("augment=3", ["config.augment=3", "expected one of its fields"]),
        ("learning_rate=1", ["no field 'learning_rate'", "did you mean config.optimizer.learning_rate?"]),
        ("optimzer.learning_rate=1", ["no field 'optimzer'", "did you mean config.optimizer.learning_rate?"]),
        ("optimizer.learning_rat=1", ["config.optimizer has no field", "did you mean config.optimizer.learning_rate?"]),
        ("width=1", ["did you mean config.network.width or config.preview.width?"]),
        ("seed.x=1", ["config.seed has no field 'x'"]),
    ],
)
def test_wrong_overrides(fails, tmp_path, override, named):
    error = fails("train", CONFIG, f"--workdir={tmp_path}", f"--config.{override}")
    assert all(text in error for text in named), error


@pytest.mark.parametrize(
    ("config", "fields", "sizes"),
    [
        ("imagenet_basisnet_mv3", [], (224, 160)),
        ("imagenet_basisnet_mv3", ["image_size=96"], (96, 69)),  # 68.6
        ("imagenet_basisnet_mv3", ["image_size=96", "image_size=224"], (224, 160)),
        ("imagenet_basisnet_mv3", ["image_size=96", "preview.image_size=64"], (96, 64)),
        ("imagenet_basisnet_mv3", ["preview.image_size=64", "image_size=96"], (96, 64)),
        ("imagenet_basisnet_mv3", ["preview={'image_size': 64}", "image_size=96"], (96, 64)),
        ("digits", ["image_size=64"], (64, 32)),
    ],
)
def test_the_preview_changes_with_the_size_of_the_images(config, fields, sizes, tmp_path):
    found = parsing.read_config([f"--config={config}", *(f"--config.{field}" for field in fields)])
    assert (found.image_size, found.preview.image_size) == sizes
    path = tmp_path / "mine.py"
    path.write_text(
        "from basisnet_jax.configs import default\n"
        "def get_config():\n    config = default.get_config()\n    default.resize(config, 96)\n    return config\n"
    )
    found = parsing.read_config([f"--config={path}"])
    assert (found.image_size, found.preview.image_size) == (96, 69)


@pytest.mark.slow
def test_a_preview_of_more_pixels_than_the_image(fails, make_run, tiny, data_dir, tmp_path):
    """Is refused, but not in the workdir of a run that has one already."""
    line = "config.preview.image_size=33, expected at most config.image_size=32"
    new = tmp_path / "new"
    for argv in (["madds"], ["train", f"--workdir={new}", f"--config.data_dir={data_dir}"]):
        assert line in fails(*argv, "--config=digits", "--config.preview.image_size=33")
    assert not new.exists()
    static = ["--config.model=static", "--config.basis.num_bases=1", "--config.preview.image_size=33"]
    assert cli.main(["madds", "--config=digits", *static]) == 0  # which has no preview
    old = make_run(tiny(**{"preview.image_size": 20}), tmp_path / "old")
    assert runs.load(old).model.preview_size == 20


def test_packaged_configs_are_found_by_name_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    by_name, by_file = (parsing.read_config([f"{config}:bases=3"]) for config in ("--config=digits", CONFIG))
    assert by_name.to_dict() == by_file.to_dict() and by_name.basis.num_bases == 3
    text = "from basisnet_jax.configs import digits\n\n\ndef get_config(arg=''):\n    return digits.get_config(arg)\n"
    (tmp_path / "mine").write_text(text)  # a file may be called anything
    (tmp_path / "digits").mkdir()
    assert parsing.read_config(["--config=mine:bases=3"]).basis.num_bases == 3
    assert parsing.read_config(["--config=digits:bases=3"]).basis.num_bases == 3


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("x = 1", "mine.py is not a config file: expected a function get_config()"),
        ("def get_config():\n    return {}", "get_config() returns dict, expected ml_collections.ConfigDict"),
        ("def get_config():\n    pass", "mine.py: get_config() returns nothing, expected ml_collections.ConfigDict"),
        ("def get_config():\n    return missing", "mine.py, line 2: NameError: name 'missing' is not defined"),
        ("import no_such_module", "mine.py, line 1: ModuleNotFoundError"),
        ("def get_config(:", "mine.py: SyntaxError"),
    ],
)
def test_mistakes_in_a_config_of_ones_own(fails, tmp_path, text, named):
    (tmp_path / "mine.py").write_text(text)
    assert named in fails("train", f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/run")


def test_configs_are_listed_with_their_arguments(capsys):
    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert names == sorted({path.stem for path in CONFIGS.glob("*.py")} - {"__init__", *parsing.HELPERS})
    at = next(i for i, line in enumerate(lines) if line.startswith("digits "))
    assert "BasisNet on scikit-learn's digits" in lines[at]
    assert lines[at + 1].strip() == "bases (8), width (0.5), seed (0)"
    assert sum("seed (0)" in line for line in lines) == len(names) - 1  # all but default


def test_overrides_are_read_from_the_arguments_given(monkeypatch):
    """And not from the process's own, which are those of a test runner or of a sweep."""
    monkeypatch.setattr(sys, "argv", ["sweep", "--config.seed=1"])
    config = parsing.read_config(
        [CONFIG + ":bases=3", "--config.batch_size=32", "--config.network.stage_strides=(2,1,1,1)"]
    )
    assert (config.seed, config.batch_size, config.basis.num_bases) == (0, 32, 3)
    assert parsing.resolve(config).network.stage_strides == [2, 1, 1, 1]


def test_madds_as_json(capsys):
    assert cli.main(["madds", CONFIG, "--json", "--share=0.25"]) == 0
    printed = json.loads(capsys.readouterr().out)
    items = printed["items"]
    assert all(set(item) == {"name", "stage", "kind", "madds", "params"} for item in items)
    assert printed["total"] == sum(item["madds"] for item in items) > 0
    preview = sum(item["madds"] for item in items if item["stage"] == "preview")
    assert printed["mean_with_early_termination"] == pytest.approx(0.25 * preview + 0.75 * printed["total"])


@pytest.mark.slow
def test_madds_with_the_classes_of_the_dataset(capsys, data_dir):
    printed = []
    for num_classes in (10, 0):
        assert cli.main(["madds", CONFIG, f"--config.data_dir={data_dir}", f"--config.num_classes={num_classes}"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


@pytest.mark.slow
def test_paths_are_told_and_can_be_chosen(capsys):
    def paths(*flags):
        assert cli.main(["madds", CONFIG, "--json", *flags]) == 0
        return json.loads(capsys.readouterr().out)["paths"]

    best = paths()
    assert set(best.values()) == {"pointwise", "depthwise", "one product"}
    assert all(("depthwise" in name) == (path == "depthwise") for name, path in best.items())
    chosen = paths("--config.basis.paths.depthwise=general", "--config.basis.paths.pointwise=folded")
    assert chosen == {name: "general" if path == "depthwise" else "folded" for name, path in best.items()}
    assert cli.main(["madds", CONFIG, "--config.basis.paths.pointwise=depthwise"]) == 2
    message = capsys.readouterr().err.strip()
    assert message.endswith(
        "config.basis.paths.pointwise='depthwise', expected one of pointwise, general, folded, loop, or nothing"
    )
    assert "\n" not in message


def test_madds_of_a_static_network(capsys):
    assert cli.main(["madds", CONFIG, "--json", "--config.model=static"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["mean_with_early_termination"] is None and {i["stage"] for i in printed["items"]} == {"network"}


def test_madds_as_a_table(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["madds", "--config", "digits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("paths on cpu: pointwise ")
    assert lines[0].split() == ["layer", "stage", "kind", "MAdds", "params", "path"]


def test_a_reader_that_has_enough_ends_the_command_without_a_word():
    code = """
import sys
from basisnet_jax import cli
cli.VERBS["count"] = lambda given: [print(i, flush=True) for i in range(1_000_000)]
sys.exit(cli.main(["count"]))
"""
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert command.stdout.readline() == "0\n"
    command.stdout.close()
    assert command.wait(60) == 1 and command.stderr.read() == ""


def test_stderr_may_be_closed():
    """Results alone are on stdout, and no file becomes descriptor 2."""
    code = """
import os, sys
from basisnet_jax import cli
def wrong(given):
    print("result", os.path.samestat(os.fstat(2), os.stat(os.devnull)))
    raise cli.UserError("a message")
cli.VERBS["wrong"] = wrong
sys.argv[1:] = ["wrong"]
sys.exit(cli.main())
"""
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "result True\n")


@pytest.mark.odd("disk")
@pytest.mark.parametrize("rows", [1, 100_000])  # in the buffer till the end, and more than it holds
def test_a_full_disk_behind_stdout_is_told_in_one_line(rows, record_property):
    code = f"""
import sys
from basisnet_jax import cli
cli.VERBS["count"] = lambda given: [print(i) for i in range({rows})]
sys.argv[1:] = ["count"]
sys.exit(cli.main())
"""
    with open("/dev/full", "w") as disk:
        done = subprocess.run([sys.executable, "-c", code], stdout=disk, stderr=subprocess.PIPE, text=True, check=False)
    conftest.record_told(record_property, done.returncode, done.stderr)
    told = "basisnet: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, told)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize("accelerator", [False, True])
def test_on_cpu_freed_memory_stays_for_the_next_step(accelerator, tmp_path):
    """And where an accelerator computes, the allocator is left as it is."""
    code = """
import resource, threading
from basisnet_jax import cli
import numpy as np
cli.keep_freed_memory()
def step():
    np.ones(2**25)  # 256 MB: 65536 pages
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def steps():
    step()
    before = faults()
    step()
    print(faults() - before)
thread = threading.Thread(target=steps)  # XLA's are threads too
thread.start()
thread.join()
"""
    env = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    if accelerator:
        (tmp_path / "libtpu.py").touch()
        env["PYTHONPATH"] = str(tmp_path)
    else:
        env["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 100) == accelerator
