"""Workdirs in a bucket, against a server that answers as Google Cloud Storage does."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import gcs_server
import jax.numpy as jnp
import numpy as np
import pytest

import basisnet_jax
from basisnet_jax import cli
from basisnet_jax.data import pipeline
from basisnet_jax.errors import UserError
from basisnet_jax.workdir import checkpoint, files, runs, stores

RUN = "gs://bucket/run"


@pytest.fixture(scope="module")
def server():
    """The one bucket of this process: TensorStore and Google's client keep the address that they read first."""
    pytest.importorskip("gcsfs", reason="needs the extra `gcs`")
    with gcs_server.Server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in {**gcs_server.environment(server.server_port), "EPATH_USE_TF": "false"}.items():
            patch.setenv(name, value)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def bucket(server):
    server.objects.clear()
    stores.connect.cache_clear()
    yield server
    server.read_only = False


def names(bucket):
    return [name.removeprefix("run/") for name in bucket.names("bucket")]


def test_a_file_is_written_whole_or_not_at_all(bucket):
    path = f"{RUN}/a.json"
    assert not files.exists(path)
    files.write_json(path, {"a": "ö"})
    with pytest.raises(KeyError), files.replacing(path) as file:
        file.write("half")
        raise KeyError
    with files.reading(path) as file:
        assert json.load(file) == {"a": "ö"}
    with files.replacing(f"{RUN}/a.csv", newline="") as file:
        file.write("é\r\n")
    with files.replacing(f"{RUN}/a.png", "wb") as file:
        file.write(b"\x89")
    for line in ("first", "second"):
        files.append(f"{RUN}/log", line)
    contents = {name: content for (_, name), (_, content) in bucket.objects.items()}
    assert contents.pop("run/a.json") == b'{\n "a": "\\u00f6"\n}'
    assert contents == {"run/a.csv": "é\r\n".encode(), "run/a.png": b"\x89", "run/log": b"first\nsecond\n"}


def test_what_the_store_refuses_is_an_error_of_a_file_system(bucket):
    with pytest.raises(FileNotFoundError):
        files.reading(f"{RUN}/missing")
    bucket.read_only = True
    assert "no storage.objects.create access" in files.unwritable(RUN)
    with pytest.raises(OSError, match="no storage.objects.create access"):
        files.append(f"{RUN}/log", "first")
    with pytest.raises(UserError, match=f"workdir {RUN} cannot be written: Forbidden"), runs.locked(RUN):
        pass
    assert files.unwritable("gs://other/run") == "there is no such bucket"


def test_a_store_that_refuses_ends_a_run_in_one_line(bucket):
    bucket.read_only = True
    told = f"workdir {RUN} cannot be written: .*no storage.objects.create access.*; what was saved is there"
    with pytest.raises(UserError, match=told), runs.told_when_full(RUN):
        files.append(f"{RUN}/metrics.jsonl", "{}")


def test_one_run_at_a_time(bucket):
    with runs.locked(RUN):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on .*; if that has ended, remove {RUN}/"):
            with runs.locked(RUN):
                pass
        assert names(bucket) == ["lock"]
    assert names(bucket) == []


def test_what_a_killed_run_leaves_is_taken_over_on_its_own_machine_only(bucket):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = socket.gethostname(), stores.machine()
    for host, machine in (("elsewhere", here[1]), (here[0], "another/container")):
        stores.write(f"{RUN}/lock", f"{ended.pid} {host} {machine} token".encode())
        with pytest.raises(UserError, match=f"in use by process {ended.pid} on {host}"), runs.locked(RUN):
            pass
    for process in (ended.pid, os.getpid()):  # the numbers of processes come again, in containers at once
        stores.write(f"{RUN}/lock", " ".join([str(process), *here, "token"]).encode())
        with runs.locked(RUN):
            assert stores.read(f"{RUN}/lock").decode().split()[0] == str(os.getpid())


def test_a_lock_that_another_run_has_made_since_stays(bucket):
    with runs.locked(RUN):
        stores.write(f"{RUN}/lock", b"1 elsewhere machine token")
    assert names(bucket) == ["lock"]
    stores.write(f"{RUN}/lock", b"")
    with pytest.raises(UserError, match=r"in use by process \? on \?; if that has ended, remove"), runs.locked(RUN):
        pass


def test_of_two_that_find_no_lock_one_makes_it(bucket, monkeypatch):
    """The other one has looked before it was there."""
    stores.write(f"{RUN}/lock", b"1 elsewhere machine token")
    holder, looks = stores._holder, iter([lambda *_: None, stores._holder])
    monkeypatch.setattr(stores, "_holder", lambda *where: next(looks, holder)(*where))
    with pytest.raises(UserError, match="in use by process 1 on elsewhere"), runs.locked(RUN):
        pass


def save(step, keep=2):
    with checkpoint.manager(RUN, keep=keep) as checkpoints:
        checkpoint.save(checkpoints, step, {"a": jnp.arange(2000.0) + step})


def test_checkpoints(bucket):
    for step in (2, 3):
        save(step)
    bucket.objects["bucket", "run/checkpoints/4/default/_METADATA"] = (10**9, b"")  # of a run killed while it saved
    assert sorted(checkpoint.steps(RUN)) == [2, 3] and checkpoint.newest(RUN) == 3
    with checkpoint.manager(RUN) as checkpoints:
        restored = checkpoint.restore(checkpoints, checkpoint.pick(checkpoints), {"a": jnp.zeros(2000)})
    np.testing.assert_array_equal(restored["a"], np.arange(2000.0) + 3)
    assert len({checkpoint.fingerprint(RUN, step) for step in (2, 3)}) == 2
    save(4)
    assert sorted(checkpoint.steps(RUN)) == [3, 4]


def test_a_damaged_checkpoint_is_set_aside(bucket, caplog):
    for step in (1, 2):
        save(step)
    largest = max((key for key in bucket.objects if "/2/" in key[1]), key=lambda key: len(bucket.objects[key][1]))
    bucket.objects[largest] = (10**9, b"x" + bucket.objects[largest][1][1:])
    with checkpoint.manager(RUN) as checkpoints, pytest.raises(UserError, match="checkpoints/2 is damaged"):
        checkpoint.pick(checkpoints)
    before = [name for name in names(bucket) if name.startswith("checkpoints/2/")]
    checkpoint.set_damaged_aside(RUN)
    assert "checkpoints/2 is damaged" in caplog.text and checkpoint.steps(RUN) == [1]
    aside = [name.replace("damaged/2-0/", "checkpoints/2/") for name in names(bucket) if "damaged" in name]
    assert aside == [name for name in before if name != "checkpoints/2/commit_success.txt"]  # which went first


VERBS = [
    ["train", "--config=digits", f"--workdir={RUN}"],
    ["train", "--config=digits", "--workdir=w", f"--config.init_from={RUN}"],
    ["train", "--config=digits", "--workdir=w", f"--config.preview_init_from={RUN}"],
    ["train", "--config=digits", "--workdir=w", f"--config.distillation.teacher={RUN}"],
    ["evaluate", f"--workdir={RUN}"],
    ["calibrate", f"--workdir={RUN}", "--max_drop=0.01"],
    ["predict", f"--workdir={RUN}", "a.png"],
    ["export", f"--workdir={RUN}", "--format=stablehlo", "--output=x"],
    ["report", f"--workdir={RUN}"],
    ["import", "--network=mobilenet_v3_small", "--weights=w", f"--workdir={RUN}"],
]


@pytest.fixture
def somewhere(monkeypatch, tmp_path, data_dir, tiny, capsys):
    """`somewhere(argv)`: the command with prepared data, in an empty folder but for a.png."""
    pipeline.open(tiny(data_dir=data_dir))
    capsys.readouterr()  # that it prepares the data is told
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    return lambda argv: [*argv, f"--config.data_dir={data_dir}"] if argv[0] == "train" else argv


def named(argv):
    return "_".join(part.partition("=")[0].strip("-") for part in argv if RUN in part or "-" not in part)


@pytest.mark.odd("path")
@pytest.mark.parametrize("argv", VERBS, ids=named)
def test_a_missing_package_is_named(refused, somewhere, monkeypatch, argv):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    stores.connect.cache_clear()
    assert refused(*somewhere(argv)) == "gs://bucket needs gcsfs: pip install 'basisnet_jax[gcs]'"
    assert os.listdir() == ["a.png"]


@pytest.mark.odd("path")
@pytest.mark.parametrize("argv", VERBS[:9], ids=named)
def test_where_there_is_no_run(refused, somewhere, bucket, argv):
    bucket.read_only = True
    told = refused(*somewhere(argv))
    if argv == VERBS[0]:
        assert told.startswith(f"workdir {RUN} cannot be written: Forbidden") and "storage.objects.create" in told
    else:
        assert told == f"{RUN}/config.json is missing: {RUN} is not a workdir of `basisnet train`"


def test_load_takes_places_that_can_be_read():
    with pytest.raises(UserError, match="'s3://bucket/run' is on a remote store: expected a folder on this machine or"):
        basisnet_jax.load("s3://bucket/run")


@pytest.mark.slow
@pytest.mark.end_to_end
def test_a_killed_run_goes_on_and_ends_as_one_on_this_machine(bucket, somewhere, tmp_path, capsys):
    """And all that reads a run reads it."""
    train = somewhere(["train", "--config=digits:bases=2,width=0.1", "--config.num_epochs=2"])
    train += ["--config.checkpoint_every_steps=5", "--config.log_every_steps=5"]
    for field in ("num_stages=1", "stage_strides=2,", "head_features=12"):
        train += [f"--config.network.{field}", f"--config.preview.{field}"]
    command = [sys.executable, "-m", "basisnet_jax.cli", *train, f"--workdir={RUN}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not any(name.endswith("/5/commit_success.txt") for name in names(bucket)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    assert cli.main([*train, f"--workdir={RUN}"]) == 2 and "is in use by process" in capsys.readouterr().err
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "lock" in names(bucket)
    assert cli.main([*train, f"--workdir={RUN}"]) == 0 and "going on after step" in capsys.readouterr().out
    assert "lock" not in names(bucket)
    assert cli.main([*train, f"--workdir={tmp_path}/run"]) == 0
    expected = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert stores.read(f"{RUN}/metrics.jsonl") == expected
    left = {path.name for path in (tmp_path / "run").iterdir() if path.is_file()}
    left = {name for name in left if name != "lock" and not name.startswith("events")}
    assert left == {name for name in names(bucket) if "/" not in name}
    capsys.readouterr()

    for verb in (["evaluate", "--checkpoint=best"], ["calibrate", "--max_drop=0.01"], ["report", "--images=20"]):
        assert cli.main([*verb, f"--workdir={RUN}"]) == 0
    assert {"early_exit.json", "report.html"} <= set(names(bucket))
    images = np.zeros((2, 32, 32, 1), np.uint8)
    model, local = (basisnet_jax.load(place) for place in (RUN, f"{tmp_path}/run"))
    np.testing.assert_array_equal(model.predict(images).probabilities, local.predict(images).probabilities)
    assert model.rule.chosen_on == "early_exit.json"
