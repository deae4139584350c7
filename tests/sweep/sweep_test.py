"""Sweeps: what they refuse, what they go on from, and what they leave."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import conftest
import PIL.Image
import pytest
from basisnet_jax.configs import digits

from basisnet_jax import cli, interrupts, parsing, plots, sweep
from basisnet_jax.data import pipeline
from basisnet_jax.sweep import launchers

CONFIG = conftest.ROOT / "configs" / "digits.py"
TINY = {
    **{f"config.{network}.width": 0.1 for network in ("network", "preview")},
    **{f"config.{network}.num_stages": 1 for network in ("network", "preview")},
    **{f"config.{network}.stage_strides": (2,) for network in ("network", "preview")},
    "config.image_size": 16,
    "config.preview.image_size": 8,
    "config.num_epochs": 2.0,
    "config.checkpoint_every_steps": 5,
    "config.log_every_steps": 5,
}


@pytest.fixture(scope="module")
def data_dir(data_dir):
    """With the digits in it: TFDS tells at length when it prepares them."""
    pipeline.open(parsing.read_config([f"--config={CONFIG}", f"--config.data_dir={data_dir}"])).num_examples("train")
    return data_dir


@pytest.fixture
def write(tmp_path, data_dir):
    """`write(*yielded)`: the flags of a sweep over tiny networks."""

    def write(*yielded, **names):
        common = {**TINY, "config.data_dir": data_dir}
        names = {"CONFIG": f"{CONFIG}:bases=2", "COMMON": common, **names}
        lines = [f"{name} = {value!r}" for name, value in names.items()]
        (tmp_path / "sweep.py").write_text("\n".join([*lines, f"def sweep():\n    yield from {list(yielded)!r}"]))
        return [f"--sweep={tmp_path}/sweep.py", f"--workdir={tmp_path}/all"]

    return write


@pytest.fixture
def fails(capsys):
    """`fails(flags)`: the one line that the command prints, ending with exit code 2."""

    def run(flags):
        assert cli.main(["sweep", *flags]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith("basisnet: "), err
        return err

    return run


def read(folder):
    with open(folder / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


# What a run does, without the minute that it takes: by its seed it succeeds, fails, dies of memory after each
# checkpoint, or waits for SIGTERM. It gets its folder, its last step and its seed.
FAKE = """
import json, os, pathlib, signal, sys, time
folder, steps, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
saved = len(list((folder / "checkpoints").glob("*")))
print("life after", saved, "checkpoints", flush=True)
if seed == 1:
    sys.exit("basisnet: it is broken")
if seed == 2 and saved < 2 or seed == 3 and not saved:
    (folder / "checkpoints" / str(saved + 1)).mkdir(parents=True)
    os.kill(os.getpid(), signal.SIGKILL)
if seed == 3:
    os.kill(os.getpid(), signal.SIGKILL)
if seed == 4:
    signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(0)))
    (folder / "ready").touch()
    time.sleep(60)
provenance = {"commit": "abc", "seed": seed, "device": "cpu"}
metrics = {"top1": 0.9, "madds": 1e6, "step": steps, "train": {"top1": 0.95}, "provenance": provenance}
(folder / "evaluation.json").write_text(json.dumps(metrics))
"""


@pytest.fixture
def fake(monkeypatch):
    """Runs are replaced by those above."""
    command = launchers.command

    def faked(run, cache):
        _, env = command(run, cache)
        return [sys.executable, "-S", "-c", FAKE, str(run.folder), str(run.steps), str(run.config.seed)], env

    monkeypatch.setattr(launchers, "command", faked)
    monkeypatch.setattr(launchers.Processes, "poll_s", 0.02)


@pytest.mark.parametrize(
    ("yielded", "names", "words"),
    [
        ([], {}, ["sweep() yields no run"]),
        ([{"config.nonsense": 1}], {}, ["{'config.nonsense': 1}", "no field 'nonsense'"]),
        ([{"nonsense": 1}], {}, ["'nonsense'", "expected bases, width, seed"]),
        ([{"seed": 1}, {"config.seed": 1}], {}, ["the same run twice: seed=1 and seed=1"]),
        ([{"seed": 0}, {"bases": 2, "seed": 0}], {}, ["the same run twice: seed=0 and bases=2,seed=0"]),
        (["seed=1"], {}, ["'seed=1'", "expected a dict"]),
        ([{"seed": 0}], {"CONFIG": 3}, ["is not a sweep file", "CONFIG", "sweep()"]),
        ([{"seed": 0}], {"CONFIG": "none.py"}, ["config file 'none.py' does not exist"]),
        ([{"seed": 0}], {"sweep": 1, "CONFIG": "undefined"}, ["does not exist"]),
        ([{"config.dataset": "digit"}], {}, ["'digit'", "digits"]),
    ],
)
def test_mistakes_in_a_sweep_file(write, fails, tmp_path, yielded, names, words):
    error = fails(write(*yielded, **names))
    assert all(word in error for word in words), error
    assert not (tmp_path / "all").exists()


def test_mistakes_on_the_command_line(write, fails, tmp_path):
    flags = write({"seed": 0})
    assert "'cloud', expected one of local, slurm" in fails([*flags, "--cluster=cloud"])
    assert "--jobs='0'" in fails([*flags, "--jobs=0"])
    assert "sweep file 'none.py' does not exist" in fails(["--sweep=none.py", flags[1]])
    (tmp_path / "broken.py").write_text("CONFIG = 1\n\n\ndef sweep():\n    yield 1 / 0\n")
    assert "broken.py, line 5: ZeroDivisionError: division by zero" in fails(
        [f"--sweep={tmp_path}/broken.py", flags[1]]
    )
    (tmp_path / "broken.py").write_text("CONFIG = 'digits.py'\n")
    assert "is not a sweep file" in fails([f"--sweep={tmp_path}/broken.py", flags[1]])
    (tmp_path / "file").touch()
    assert "Not a directory" in fails([flags[0], f"--workdir={tmp_path}/file/all"])


def test_slurm_without_submitit_or_slurm(write, fails, tmp_path, monkeypatch):
    flags = [*write({"seed": 0}), "--cluster=slurm"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        assert "pip install 'basisnet_jax[slurm]'" in fails(flags)
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    for program in ("squeue", "sbatch", "srun"):
        monkeypatch.setenv("PATH", str(tmp_path))
        assert "on this machine's PATH, hence no Slurm" in fails(flags)
        (tmp_path / program).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / program).chmod(0o755)
    assert "squeue fails" in fails(flags)
    assert "partitoin" in fails([*write({"seed": 0}, SLURM={"partitoin": "x"}), "--cluster=slurm"])


def test_the_sweep_of_the_readme_has_18_runs_of_known_kinds(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(CONFIG.parents[1])
    common, _, yielded = sweep.load("configs/sweeps/bases_width.py")
    made = [sweep.make_run({**common, "config.data_dir": data_dir}, one, tmp_path) for one in yielded]
    sweep.check("bases_width.py", made, tmp_path)
    kinds = {(run.config.model, run.config.network.width, run.config.basis.num_bases) for run in made}
    assert len(made) == 18 and len(kinds) == 6 and {run.config.seed for run in made} == {0, 1, 2}


def test_a_packaged_config_by_its_name(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = {"CONFIG": "digits:width=0.25", "config.data_dir": data_dir, "config.remat_kernels": None}
    run = sweep.make_run(common, {"bases": 2, "config.network.stage_strides": (2, 2, 2, 2)}, tmp_path)
    assert run.flags[0] == "--config=digits:width=0.25,bases=2"
    found = run.config.network.width, run.config.basis.num_bases, run.config.network.stage_strides
    assert found == (0.25, 2, [2, 2, 2, 2]) and run.config.remat_kernels is None


def test_names_are_folders_that_differ_where_the_runs_do():
    assert sweep.name_of({"bases": 4, "config.optimizer.name": "adamw"}) == "bases=4,optimizer.name=adamw"
    assert sweep.name_of({}) == "base"
    names = [sweep.name_of({"config.init_from": path}) for path in ("a/b", "a:b", "x" * 500)]
    assert len(set(names)) == 3 and all("/" not in name and len(name) < 200 for name in names)


@pytest.mark.parametrize("path", ["a/b", "x" * 500])
def test_names_that_characters_or_length_forbid_still_tell_seeds_from_settings(path):
    kinds = [{"config.init_from": path}, {"config.init_from": path + "c"}]
    rows = [
        {"run": sweep.name_of({"seed": seed, **kind}), "model": "static", "width": 1, "num_bases": 1, "madds": 1}
        | {"top1": seed}
        for kind in kinds
        for seed in range(3)
    ]
    assert len({row["run"] for row in rows}) == 6
    assert [(point["n"], point["mean"]) for point in plots.averaged(rows)] == [(3, 100), (3, 100)]


def test_a_job_of_the_user_may_have_any_name(tmp_path, monkeypatch):
    def squeue(*args, **kwargs):
        return subprocess.CompletedProcess(args, 0, "my own job 12\nsweep-1 13\n", "")

    monkeypatch.setattr(subprocess, "run", squeue)
    assert launchers.Slurm.read_queue(None) == {"my own job": "12", "sweep-1": "13"}


def test_runs_that_fail_or_die_do_not_stop_the_others(fake, write, tmp_path, capsys):
    flags = write(*({"seed": seed} for seed in range(4)))
    assert cli.main(["sweep", *flags, "--jobs=2"]) == 1
    out, err = capsys.readouterr()
    assert err == "basisnet: 2 of 4 runs failed; the same command tries them again\n"
    log = f"({tmp_path}/all/runs/seed=1/log.txt)"
    assert f"FAILED seed=1: basisnet: it is broken {log}" in out and "FAILED seed=3: killed by SIGKILL" in out
    rows = read(tmp_path / "all")
    assert [row["run"] for row in rows] == ["seed=0", "seed=2"]
    assert rows[0]["train_top1"] == "0.95" and rows[0]["commit"] == "abc" and float(rows[0]["wall_s"]) >= 0
    # It came further each time.
    text = (tmp_path / "all" / "runs" / "seed=2" / "log.txt").read_text()
    assert [line for line in text.splitlines() if "life" in line] == [f"life after {i} checkpoints" for i in range(3)]
    assert text.splitlines()[0].startswith(f"$ basisnet train --config={CONFIG}:bases=2,seed=2 --config.")

    # More runs go on from there; those that are finished are not repeated, those that failed are.
    assert cli.main(["sweep", *write(*({"seed": seed} for seed in (0, 1, 2, 3, 5)))]) == 1
    out, _ = capsys.readouterr()
    assert "2 of 5 runs had finished before" in out and "[3/5] seed=5" in out and "FAILED seed=1" in out
    assert [row["run"] for row in read(tmp_path / "all")] == ["seed=0", "seed=2", "seed=5"]
    assert (tmp_path / "all" / "runs" / "seed=2" / "log.txt").read_text() == text


def test_a_workdir_of_another_sweep_is_refused(fake, write, fails, tmp_path, capsys):
    assert cli.main(["sweep", *write({"seed": 0}, {"seed": 5})]) == 0
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    assert "does not yield its run seed=5; use another --workdir" in fails(write({"seed": 0}, {"seed": 7}))
    # A run that has begun tells its config.
    run = tmp_path / "all" / "runs" / "seed=0"
    found = json.loads(json.dumps({"seed": 3}))
    (run / "config.json").write_text(json.dumps(found))
    (run / "checkpoints" / "1").mkdir(parents=True)
    assert "seed: given 0, there 3" in fails(write({"seed": 0}, {"seed": 5}))
    (run / "config.json").unlink()
    shutil.rmtree(run / "checkpoints")
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "all" / "config.json").write_text("{}")
    assert "that of a single run" in fails(write({"seed": 0}, {"seed": 5}))


def test_a_second_sweep_in_the_same_workdir_is_refused(fake, write, fails, tmp_path):
    flags = write({"seed": 0})
    (tmp_path / "all").mkdir()
    with sweep.runs.locked(str(tmp_path / "all")):
        assert f"is in use by process {os.getpid()}" in fails(flags)


def terminate_once_handled(over: threading.Event):
    """Sends SIGTERM to this process as soon as that does not end it, unless the test is over."""
    while signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, interrupts.interrupt):
        if over.wait(0.01):
            return
    os.kill(os.getpid(), signal.SIGTERM)


def test_runs_that_outlive_their_sweep_are_found_again(fake, write, tmp_path, capsys):
    flags = write({"seed": 4}, {"seed": 0})
    common, slurm, yielded = sweep.load(flags[0].partition("=")[2])
    run, other = [sweep.make_run(common, one, tmp_path / "all" / "runs") for one in yielded]
    killed = launchers.Processes(tmp_path / "all", 1, slurm)
    killed.start(run)
    while not (run.folder / "ready").exists():
        time.sleep(0.01)
    # Nothing but the files is left of the sweep. SIGTERM to the next one ends the run too, in peace.
    assert launchers.Processes(tmp_path / "all", 1, slurm).alive([run, other]) == {run.name}
    over = threading.Event()
    killer = threading.Thread(target=terminate_once_handled, args=[over])
    killer.start()
    try:
        assert cli.main(["sweep", *flags, "--jobs=1"]) == 1
    finally:
        over.set()
        killer.join()
    out, err = capsys.readouterr()
    assert "stopping 1 runs" in out and "stopped with 0 of 2 runs finished" in err
    text = (run.folder / "log.txt").read_text()
    assert text.count("life") == 1 and text.endswith("saved\n") and not other.folder.exists()
    assert not killed.alive([run])


def test_memory_limits_how_many_run_at_once(monkeypatch, tmp_path):
    here = launchers.Processes(tmp_path, None, {})
    here.slots = 4
    monkeypatch.setattr(launchers, "pid", lambda run: run)
    monkeypatch.setattr(launchers, "memory", lambda run: (0.5e9, 4e9))
    for available, room in ((4.1e9, False), (11.4e9, True)):  # the one that runs may want 3.5 GB more, a new one 4
        monkeypatch.setattr(launchers, "available_memory", lambda available=available: available)
        assert here.has_room([1]) == room
    monkeypatch.setattr(launchers, "available_memory", lambda: 0)
    assert here.has_room([]) and not here.has_room([1])
    assert launchers.Processes(tmp_path, 2, {}).has_room([1])  # with --jobs nobody asks


@pytest.mark.parametrize("fields", [{}, {"width": [1, 2]}])
def test_networks_of_ones_own_have_points(tmp_path, fields):
    config = digits.get_config()
    config.network = type(config)({"name": "mine:net", **fields})
    run = sweep.Variant("seed=0", tmp_path, [], config, None, 1, {"seed": 0})
    found = {"madds": 5, "top1": 0.5, "train": {"top1": 0.6}, "provenance": {}}
    [point] = plots.averaged([{name: str(value) for name, value in sweep.row(run, found, ["seed"]).items()}])
    assert (point["width"], point["madds"]) == (1.0, 5.0)


def test_intervals_and_fronts():
    rows = [
        dict(run=f"width=0.5,seed={seed}", model="static", width="0.5", num_bases="1", madds="1e6", top1=str(top1))
        for seed, top1 in enumerate((0.8, 0.9))
    ]
    [point] = plots.averaged(rows)
    assert point["mean"] == pytest.approx(85) and point["error"] == pytest.approx(12.706 * 5, rel=1e-3)  # Student's t
    assert plots.averaged(rows[:1])[0]["error"] == 0
    assert plots.pareto([(2, 80), (1, 70), (3, 75), (2, 60), (4, 90)]) == [(1, 70), (2, 80), (4, 90)]


@pytest.mark.end_to_end
@pytest.mark.slow
def test_killed_in_the_middle_a_sweep_goes_on(write, tmp_path, capsys):
    """Both the sweep and its run, with SIGKILL."""
    flags = [*write({"config.model": "static"}, {"bases": 3}), "--jobs=1"]
    process = subprocess.Popen([sys.executable, "-m", "basisnet_jax.cli", "sweep", *flags], stdout=subprocess.DEVNULL)
    folder = tmp_path / "all" / "runs" / "model=static"
    while not (folder / "checkpoints" / "5").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
    assert cli.main(["sweep", *flags]) == 0
    assert "[2/2] bases=3" in capsys.readouterr().out
    assert "32 steps on 1 x cpu, going on after step " in (folder / "log.txt").read_text()
    static, basisnet = read(tmp_path / "all")
    first = ["run", "model", "width", "num_bases", "seed", "madds", "train_top1", "top1", "preview_top1", "bases"]
    assert set(first) <= set(static) and list(static)[:9] == first[:9]
    assert [row["model"] for row in (static, basisnet)] == ["static", "basisnet"]
    assert [row["num_bases"] for row in (static, basisnet)] == ["1", "3"]
    assert 0 <= float(basisnet["preview_top1"]) <= 1 and static["preview_top1"] == ""
    report = json.loads((folder / "evaluation.json").read_text())
    assert report["train"]["num_examples"] == 1077 and float(static["train_top1"]) == report["train"]["top1"]
    for name in ("accuracy_madds.png", "accuracy_bases.png"):
        with PIL.Image.open(tmp_path / "all" / name) as image:
            assert image.size[0] > 500
    # All is there: nothing runs.
    text = (folder / "log.txt").read_text()
    assert cli.main(["sweep", *flags]) == 0
    assert "2 of 2 runs had finished before" in capsys.readouterr().out and (folder / "log.txt").read_text() == text
