"""On a real Slurm of one node: experiments/slurm/train.sbatch, a sweep, and who waits for whom in a job."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time

import conftest
import faults
import pytest

from basisnet_jax.distributed import processes

FOLDER = conftest.ROOT / "experiments" / "slurm"


@pytest.mark.parametrize(
    ("variables", "joins"),
    [
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}, True),  # under srun
        ({"SLURM_NTASKS": "2"}, False),  # the shell of sbatch or salloc
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "1"}, False),  # the same where salloc's shell is a step
    ],
)
def test_a_process_waits_for_those_of_its_step(monkeypatch, variables, joins):
    calls = []
    monkeypatch.setattr("jax.distributed.initialize", lambda *args, **kwargs: calls.append(args))
    for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with processes.joined():
        assert calls == [(None, None, None)] * joins


@pytest.fixture(scope="module")
def slurm():
    """`slurm(command, ...)`: the output of a command that talks to it."""
    with tempfile.TemporaryDirectory() as folder:  # not pytest's, which munged's user cannot reach
        started = subprocess.run([FOLDER / "single_node.sh", "start", folder], capture_output=True, text=True)
        if started.returncode == 2:
            pytest.skip(started.stderr.strip())
        assert started.returncode == 0, started.stderr
        path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"  # where `basisnet` is
        env = os.environ | {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": path}
        try:
            yield lambda *argv: subprocess.run(argv, env=env, check=True, capture_output=True, text=True).stdout
        finally:
            subprocess.run([FOLDER / "single_node.sh", "stop", folder], check=True)


@pytest.fixture
def submit(slurm, data_dir, tmp_path):
    """`submit()`: the number of a new job of two tasks, always the same; what it prints is appended to tmp_path/log."""

    def submit():
        flags = faults.command(tmp_path / "run", "--config.num_epochs=1", f"--config.data_dir={data_dir}")[4:]
        options = ["--ntasks-per-node=2", "--cpus-per-task=1", f"--output={tmp_path / 'log'}"]
        return slurm("sbatch", "--parsable", *options, FOLDER / "train.sbatch", *flags).strip()

    return submit


def wait_for(pattern, read, times=1):
    """The match number `times` in what `read` returns."""
    end = time.monotonic() + 300
    while len(found := re.findall(pattern, text := read(), re.MULTILINE)) < times:
        assert time.monotonic() < end, text
        time.sleep(0.2)
    return found[times - 1]


@pytest.mark.slow
@pytest.mark.end_to_end
def test_two_tasks_are_one_run_that_goes_on_when_stopped(slurm, submit, tmp_path):
    """Both signals come before the first step of their life, which is when they are easiest to lose."""

    def output():
        return (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""

    def ended():
        return wait_for(
            "JobState=(COMPLETED|FAILED)(?s:.*) ExitCode=(.*)", lambda: slurm("scontrol", "show", "job", job)
        )

    started = r"^16 steps on 2 x cpu(?:, going on after step (\d+))?$"
    stopped = r"^stopped after step (\d+) of 16, saved; the same command goes on from there$"
    # SIGTERM to the steps: the job ends in peace.
    job = submit()
    wait_for(started, output, 2)
    slurm("scancel", "--signal=TERM", job)
    assert ended() == ("COMPLETED", "0:0"), output()
    step = wait_for(stopped, output, 2)
    # The same submission goes on. At the signal of its time limit it queues again, and goes on by itself.
    job = submit()
    assert wait_for(started, output, 4) == step
    slurm("scancel", "--batch", "--signal=USR1", job)
    step = wait_for(stopped, output, 4)
    assert wait_for(started, output, 6) == step
    assert ended() == ("COMPLETED", "0:0"), output()
    assert "Restarts=1" in slurm("scontrol", "show", "job", job)
    # However many tasks and lives: everything is logged once.
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [(row["step"], row["split"]) for row in rows]
    assert len(set(logged)) == len(logged) and logged[-1] == (16, "test")
    assert len(list(tmp_path.rglob("config.json"))) == 1


SWEEP = """
CONFIG = {config!r}
COMMON = {common!r}
SLURM = {{"cpus_per_task": 1, "timeout_min": 10}}


def sweep():
    yield {{"seed": 0}}
    yield {{"seed": 1}}
    yield {{"config.init_from": "none"}}
"""


@pytest.mark.slow
@pytest.mark.end_to_end
def test_a_sweep_killed_in_the_middle_finds_its_jobs_again(slurm, data_dir, tmp_path):
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    fields = dict(flag.removeprefix("--").split("=", 1) for flag in faults.SMALL)
    common = {**fields, "config.num_epochs": 2.0, "config.data_dir": data_dir}
    file = tmp_path / "sweep.py"
    file.write_text(SWEEP.format(config=f"{faults.CONFIG}:bases=2", common=common))
    command = f"{sys.executable} -m basisnet_jax.cli sweep --sweep={file} --workdir={tmp_path}/all --cluster=slurm"
    # Killed when two jobs run and one waits; so is one of the jobs, as when a node fails.
    killed = """
{command} &
until [[ $(squeue --noheader | wc -l) == 3 && -e {run}/checkpoints/5 ]]; do sleep 0.1; kill -0 $!; done
kill -9 $!
scancel --signal=KILL $(squeue --noheader --format='%i %j' | grep seed=0 | cut -d' ' -f1)
"""
    run = tmp_path / "all" / "runs" / "seed=0"
    slurm("bash", "-ec", killed.format(command=command, run=run))
    output = slurm("bash", "-c", f"{command}; echo exit code $?")
    assert "[2/3] seed=" in output and "FAILED init_from=none: basisnet: none/config.json is missing" in output
    assert output.endswith("exit code 1\n")
    jobs = {path.name: len(list(path.glob("slurm/*_submission.sh"))) for path in run.parent.iterdir()}
    assert jobs["seed=1"] == 1 and jobs["seed=0"] == 2  # one was found again, the other went on
    assert "32 steps on 1 x cpu, going on after step " in (run / "log.txt").read_text()
    assert len((tmp_path / "all" / "sweep.csv").read_text().splitlines()) == 3
