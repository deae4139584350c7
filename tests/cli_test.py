"""The command line: a user's mistake ends in one line that names it and exit code 2; results are as documented."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from basisnet_jax import cli, parsing
from basisnet_jax.data import pipeline
from basisnet_jax.workdir import runs

CONFIG = f"--config={Path(__file__).parents[1] / 'configs' / 'digits.py'}"


@pytest.fixture(scope="module")
def data_dir(data_dir):
    """With the digits in it: TFDS tells at length when it prepares them."""
    config = parsing.parse([CONFIG, f"--config.data_dir={data_dir}"], "config").config
    pipeline.num_examples(config, "train")
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
        (["train", CONFIG, "--workdir=DIR", "--wrokdir=x"], ["wrokdir"]),
        (["train", CONFIG, "--workdir=DIR", "stray"], ["'stray'"]),
        (["train", CONFIG, "--workdir=DIR", "--config.nonsense=1"], ["'nonsense'", "configs/default.py"]),
        (["train", CONFIG, "--workdir=DIR", "--config.optimizer.nonsense=1"], ["'nonsense'"]),
        (["train", CONFIG, "--workdir=DIR", "--config.batch_size=abc"], ["config.batch_size", "'abc'", "int"]),
        (["train", "--config=DIR/none.py", "--workdir=DIR"], ["DIR/none.py", "does not exist"]),
        (["train", "--config=", "--workdir=DIR"], ["config file ''"]),
        (["train", CONFIG + ":basis=3", "--workdir=DIR"], ["'basis'", "bases, width, seed"]),
        (["train", CONFIG + ":bases=many", "--workdir=DIR"], ["'bases=many'", "bases=<int>"]),
        (["evaluate"], ["--workdir is missing"]),
        (["evaluate", "--workdir=DIR", "--threshold=high"], ["--threshold='high'", "number"]),
        (["evaluate", "--workdir=DIR", "--threshold=nan"], ["--threshold='nan'", "number"]),
        (["evaluate", "--workdir=DIR"], ["DIR/config.json is missing"]),
        (["evaluate", "--workdir=DIR/none"], ["DIR/none/config.json is missing"]),
        (["predict", "a.png"], ["no model given", "or --export="]),
        (["predict", "--workdir=DIR", "a.png", "--jsno"], ["jsno"]),
        (["predict", "--workdir=DIR", "a.png", "--threshold=nan"], ["--threshold='nan'", "number"]),
        (["predict", "--workdir=DIR/none", "a.png"], ["DIR/none/config.json is missing"]),
        (["predict", "--workdir=DIR", "a.png", "--json", "--csv"], ["--json and --csv", "one of them"]),
        (["calibrate", "--max_drop=0.1"], ["--workdir is missing"]),
        (["calibrate", "--workdir=DIR"], ["--target_madds=N or --max_drop=FRACTION"]),
        (["calibrate", "--workdir=DIR", "--target_madds=1e6", "--max_drop=0.1"], ["target_madds and max_drop given"]),
        (["calibrate", "--workdir=DIR", "--target_madds=few"], ["--target_madds='few'", "number"]),
        (["calibrate", "--workdir=DIR", "--max_drop=3"], ["--max_drop=3", "from 0 to 1"]),
        (["calibrate", "--workdir=DIR", "--max_drop=0", "--criterion=sum"], ["'sum'", "max_softmax, margin, entropy"]),
        (["calibrate", "--workdir=DIR/none", "--max_drop=0"], ["DIR/none/config.json is missing"]),
        (["madds"], ["--config is missing"]),
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
    runs.claim(parsing.resolve(parsing.parse([CONFIG], "config").config), str(tmp_path))
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
    def broken(argv):
        raise RuntimeError("boom")

    monkeypatch.setitem(cli.VERBS, "madds", broken)
    assert cli.main(["madds"]) == 1
    assert "RuntimeError: boom" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["--help"], ["help"]])
def test_help_names_every_verb(capsys, argv):
    assert cli.main(argv) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert [line.split()[:2] for line in lines] == [["basisnet", verb] for verb in cli.VERBS]
    assert {"train", "evaluate", "predict", "madds"} <= set(cli.VERBS)


def test_overrides_are_read_from_the_arguments_given(monkeypatch):
    """And not from the process's own, which are those of a test runner or of a sweep."""
    monkeypatch.setattr(sys, "argv", ["sweep", "--config.seed=1"])
    config = parsing.parse(
        [CONFIG + ":bases=3", "--config.batch_size=32", "--config.network.stage_strides=(2,1)"], "config"
    ).config
    assert (config.seed, config.batch_size, config.basis.num_bases) == (0, 32, 3)
    assert parsing.resolve(config).network.stage_strides == [2, 1]


def test_madds_as_json(capsys):
    assert cli.main(["madds", CONFIG, "--json", "--share=0.25"]) == 0
    printed = json.loads(capsys.readouterr().out)
    items = printed["items"]
    assert all(set(item) == {"name", "stage", "kind", "madds", "params"} for item in items)
    assert printed["total"] == sum(item["madds"] for item in items) > 0
    preview = sum(item["madds"] for item in items if item["stage"] == "preview")
    assert printed["mean_with_early_termination"] == pytest.approx(0.25 * preview + 0.75 * printed["total"])


def test_madds_with_the_classes_of_the_dataset(capsys, data_dir):
    printed = []
    for num_classes in (10, 0):
        assert cli.main(["madds", CONFIG, f"--config.data_dir={data_dir}", f"--config.num_classes={num_classes}"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


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


def test_madds_as_a_table(capsys):
    assert cli.main(["madds", CONFIG]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("paths on cpu: pointwise ")
    assert lines[0].split() == ["layer", "stage", "kind", "MAdds", "params", "path"]


def test_a_reader_that_has_enough_ends_the_command_without_a_word():
    code = """
import sys
from basisnet_jax import cli
cli.VERBS["count"] = lambda argv: [print(i, flush=True) for i in range(1_000_000)]
sys.exit(cli.main(["count"]))
"""
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert command.stdout.readline() == "0\n"
    command.stdout.close()
    assert command.wait(60) == 1 and command.stderr.read() == ""


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
