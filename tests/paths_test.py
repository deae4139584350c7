"""`~` is the home folder wherever a path is given; stores that are no file systems are refused where they cannot be."""

import json
import os

import pytest

from basisnet_jax import cli, flags, parsing, paths
from basisnet_jax.workdir import runs


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def read(verb, *argv):
    return flags.read(flags.create_parsers(cli.VERBS)[verb], list(argv))


def test_home_in_flags(home):
    (home / "mine.py").write_text("from basisnet_jax.configs.digits import get_config")
    given = read("train", "--config=~/mine.py:bases=3", "--workdir", "~/run")
    assert given.workdir == f"{home}/run" and given.config.basis.num_bases == 3
    given = read("predict", "--workdir=~/run", "~/a.png", "-", "--", "~/b.png")
    assert given.inputs == [f"{home}/a.png", "-", f"{home}/b.png"]
    assert read("predict", "--export=~/x").export == f"{home}/x"
    given = read("export", "--workdir=w", "--format=onnx", "--output=~/o", "--images=~/i", "--image=~/j")
    assert (given.output, given.images, given.image) == (f"{home}/o", f"{home}/i", f"{home}/j")
    assert read("report", "--workdir=w", "--output=~/r.html").output == f"{home}/r.html"
    given = read("import", "--network=n", "--weights=~/w.safetensors", "--workdir=~")
    assert (given.weights, given.workdir) == (f"{home}/w.safetensors", str(home))
    assert read("sweep", "--sweep=~/s.py", "--workdir=w").sweep == f"{home}/s.py"


def test_every_flag_that_is_a_path_is_one_of_these():
    """A new one cannot be forgotten: what a flag takes tells by its metavar."""
    for verb, parser in flags.create_parsers(cli.VERBS).items():
        for action in parser._actions:
            if action.metavar and ("DIR" in action.metavar or "FILE" in action.metavar) and action.dest != "config":
                assert action.type("~") == os.path.expanduser("~"), (verb, action.dest)


def test_paths_in_a_config_are_absolute(home, tmp_path):
    values = {field: "~/a" for field in paths.FIELDS} | {"dataset": "folder:~/images"}
    config = parsing.resolve(
        parsing.read_config(["--config=digits", *(f"--config.{f}={v}" for f, v in values.items())])
    )
    fields = runs.flat(config.to_dict())
    assert {fields[field] for field in paths.FIELDS} == {f"{home}/a"} and config.dataset == f"folder:{home}/images"
    config = parsing.resolve(parsing.read_config(["--config=digits", "--config.dataset=folder:images"]))
    assert (config.dataset, config.data_dir, config.init_from) == (f"folder:{tmp_path}/images", "", "")
    config = parsing.resolve(parsing.read_config(["--config=digits", "--config.data_dir=gs://bucket/tfds"]))
    assert config.data_dir == "gs://bucket/tfds"


def test_a_run_from_before_with_a_relative_folder_goes_on(home, tmp_path):
    config = parsing.resolve(parsing.read_config(["--config=digits", "--config.dataset=folder:images"]))
    runs.claim(config, str(tmp_path / "run"))
    (tmp_path / "run" / "checkpoints" / "1").mkdir(parents=True)
    values = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(values | {"dataset": "folder:images"}))
    runs.check(config, str(tmp_path / "run"))


def test_home_in_the_environment(home, monkeypatch, capsys):
    for name in paths.ENVIRONMENT:
        monkeypatch.setenv(name, "~/cache")
    assert cli.main(["configs"]) == 0
    assert {os.environ[name] for name in paths.ENVIRONMENT} == {f"{home}/cache"}


@pytest.mark.odd("path")
@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["train", "--config=digits", "--workdir=gs://"], "--workdir='gs://', expected a folder on this machine or gs"),
        (
            ["evaluate", "--workdir=s3://b/run"],
            "--workdir='s3://b/run', expected a folder on this machine or gs://BUCK",
        ),
        (["sweep", "--sweep=s.py", "--workdir=gs://b/all"], "--workdir='gs://b/all', expected a path on this machine"),
        (
            ["export", "--workdir=gs://b/run", "--format=onnx", "--output=gs://b/x"],
            "--output='gs://b/x', expected a path on this machine",
        ),
        (["predict", "--workdir=w", "gs://bucket/a.png"], "image='gs://bucket/a.png', expected a path on this machine"),
        (["predict", "--export=gs://bucket/x", "a.png"], "--export='gs://bucket/x', expected a path on this machine"),
        (["report", "--workdir=w", "--output=gs://b/r"], "--output='gs://b/r', expected a path on this machine"),
        (["train", "--config=digits", "--workdir=~no_such_user/run"], "--workdir='~no_such_user/run', expected a fold"),
        (["train", "--config=gs://bucket/c.py", "--workdir=w"], "config 'gs' does not exist"),
        (
            ["train", "--config=digits", "--workdir=w", "--config.data_dir=s3://bucket/tfds"],
            "config.data_dir='s3://bucket/tfds' cannot be read: File system scheme 's3' not implemented",
        ),
    ],
)
def test_what_is_no_path_of_this_machine(refused, home, argv, told):
    assert told in refused(*argv)
    assert sorted(os.listdir()) == ["home"] and not os.listdir(home)
