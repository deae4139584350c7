"""What a workdir belongs to, and disks that take nothing more."""

import errno
import json
import os
import shutil
import subprocess

import conftest
import pytest

from basisnet_jax import cli, parsing
from basisnet_jax.data import pipeline
from basisnet_jax.errors import UserError
from basisnet_jax.inference import calibrate, evaluate
from basisnet_jax.workdir import files, runs


def test_without_a_checkpoint_a_workdir_belongs_to_nobody(tiny, tmp_path):
    workdir = str(tmp_path / "run")
    wrong, right = parsing.resolve(tiny(seed=1, num_classes=3)), parsing.resolve(tiny())
    runs.claim(wrong, workdir)
    runs.write_classes(workdir, ["a", "b", "c"])
    runs.check(right, workdir)
    runs.claim(right, workdir)
    assert runs.load_config(workdir).to_dict() == right.to_dict()
    assert runs.load_classes(workdir, 10) == [str(label) for label in range(10)]  # not the names of the other
    # The same again: what a user has made of the names stays.
    runs.write_classes(workdir, list("abcdefghij"))
    runs.claim(right, workdir)
    assert runs.load_classes(workdir, 10) == list("abcdefghij")
    os.makedirs(os.path.join(workdir, "checkpoints", "5"))
    with pytest.raises(UserError, match="belongs to another config .*seed: given 1, there 0"):
        runs.check(wrong, workdir)
    runs.claim(wrong, workdir)
    assert runs.load_config(workdir).seed == 0


@pytest.mark.parametrize("text", ["[]", "3", '{"network": "mobilenet_v2"}', '{"preview": null}', "{"])
def test_a_damaged_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json cannot be read"):
        runs.load_config(str(tmp_path))


def test_where_nothing_can_be_written_is_told(tmp_path, small_disk):
    (tmp_path / "file").write_text("mine")
    assert files.unwritable(tmp_path / "new" / "run") is None and not (tmp_path / "new").exists()
    assert files.unwritable(tmp_path / "file" / "run") == files.unwritable(tmp_path / "file") == "Not a directory"
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    assert files.unwritable(tmp_path / "dangling" / "run") == "Not a directory"
    disk = small_disk("1m")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert files.unwritable(disk / "run") == "Read-only file system"


@pytest.fixture
def run(tiny, make_run, data_dir, tmp_path):
    config = tiny(data_dir=data_dir, eval_batch_size=40, test_split="test[:40]", validation_split="validation[:40]")
    pipeline.open(config)
    return make_run(config, tmp_path / "run")


@pytest.mark.odd("disk")
def test_a_read_only_workdir_is_found_before_work_begins(run, data_dir, small_disk, refused, monkeypatch, tmp_path):
    disk = small_disk("10m")
    workdir = shutil.copytree(run, disk / "run")
    (tmp_path / "sweep.py").write_text("CONFIG = 'digits'\ndef sweep():\n    yield {}\n")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for module in (evaluate, calibrate.runs):
        monkeypatch.setattr(module, "models", None)  # no model is made
    monkeypatch.setattr(pipeline, "open", None)
    for argv in (
        ["train", "--config=digits"],
        ["evaluate"],
        ["calibrate", "--max_drop=0.1"],
        ["sweep", f"--sweep={tmp_path}/sweep.py"],
    ):
        line = refused(*argv, f"--workdir={workdir}")
        assert line == f"workdir {workdir} cannot be written: Read-only file system"
    line = refused("report", f"--workdir={workdir}")
    assert line == f"{workdir}/report.html cannot be written: Read-only file system; --output=FILE writes elsewhere"


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.odd("disk")
@pytest.mark.parametrize(
    ("argv", "printed", "told"),
    [
        (["evaluate", "--threshold=0.5"], "test[:40] split, 40 images, step 3", "the evaluation cannot be written to "),
        (["calibrate", "--max_drop=0.1"], "validation[:40] split, 40 images, step 3", "early_exit.json cannot be wri"),
    ],
)
def test_on_a_full_disk_what_was_computed_is_printed(run, monkeypatch, capsys, record_property, argv, printed, told):
    before = sorted(os.listdir(run))
    monkeypatch.setattr(json, "dump", full)
    code = cli.main([*argv, f"--workdir={run}"])
    out, err = capsys.readouterr()
    conftest.record_told(record_property, code, err)
    assert code == 2
    assert out.startswith(printed) and out.count("\n") > 3
    assert told in err and err.endswith("No space left on device\n") and err.count("\n") == 1
    assert sorted(os.listdir(run)) == before
