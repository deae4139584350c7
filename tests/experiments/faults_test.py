"""Runs that are killed, preempted or find their files damaged."""

import json
import signal
import socket
import subprocess
import time

import conftest
import faults
import numpy as np
import pytest

from basisnet_jax import cli
from basisnet_jax.workdir import checkpoint, runs

pytestmark = [pytest.mark.slow, pytest.mark.end_to_end]


@pytest.fixture
def flags(data_dir):
    return ["--config.num_epochs=3", f"--config.data_dir={data_dir}"]  # 48 steps


def start(workdir, *flags):
    return subprocess.Popen(
        faults.command(workdir, *flags), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def train(workdir, *flags):
    """The same command in this process."""
    command = faults.command(workdir, *flags)
    return cli.main(command[command.index("train") :])


def wait_for_steps(process, workdir, count=1):
    """Until so many checkpoints are there."""
    while len(faults.steps(workdir)) < count:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def test_a_run_killed_again_and_again_ends_bit_for_bit_as_if_left_alone(flags, tmp_path):
    figures = faults.run(tmp_path, 3, *flags, "--config.num_epochs=5")  # on a quick machine 3 end before two kills
    assert figures["equal"] and figures["kills"] >= 2 and figures["while_saving"] >= 1, figures


def test_sigterm_saves_and_ends_in_peace(flags, tmp_path):
    """Within a step, with exit code 0."""
    workdir = tmp_path / "run"
    process = start(workdir, *flags, "--config.num_epochs=200", "--config.checkpoint_every_steps=10000")
    while not (workdir / "metrics.jsonl").exists() or not (workdir / "metrics.jsonl").read_text():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    [step] = faults.steps(workdir)
    assert f"stopped after step {step} of 3200, saved; the same command goes on from there" in output
    logged = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1] <= step < logged[-1] + 200


@pytest.mark.odd("signal")
@pytest.mark.parametrize(("numbers", "code"), [([signal.SIGINT], 0), ([signal.SIGTERM] * 2, 143)])
def test_a_signal_while_the_step_is_compiled(flags, tmp_path, record_property, numbers, code):
    """The first lets the first step end and saves, the second does not wait for the compiler."""
    process = start(tmp_path / "run", *flags)
    while not list((tmp_path / "run").glob("events*")):  # the last file that is made before the first step
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    for number in numbers:
        time.sleep(0.3)
        process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    conftest.record_told(record_property, process.returncode, output)
    assert process.returncode == code and "Traceback" not in output, output
    assert f"{numbers[0].name}: the run saves after this step and stops; a second signal ends it at once" in output
    assert bool(faults.steps(tmp_path / "run")) == (code == 0)
    assert ("saved; the same command goes on from there" in output) == (code == 0)


def test_a_second_run_in_the_same_workdir_is_refused(flags, tmp_path, capsys):
    workdir = tmp_path / "run"
    process = start(workdir, *flags, "--config.num_epochs=200")
    wait_for_steps(process, workdir)
    assert train(workdir, *flags, "--config.num_epochs=200") == 2
    assert f"is in use by process {process.pid} on" in capsys.readouterr().err
    assert process.poll() is None
    process.kill()
    process.communicate()
    # What a killed run leaves is no lock.
    with runs.locked(str(workdir)):
        pass


def start_two(workdir, *flags):
    """One run in two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        start(workdir, *flags, f"--coordinator=localhost:{port}", "--processes=2", f"--process={i}") for i in range(2)
    ]


def test_when_one_process_dies_or_is_preempted_the_others_end_too(flags, tmp_path):
    flags = [*flags, "--config.num_epochs=500"]
    workdir = tmp_path / "run"
    survivor, victim = start_two(workdir, *flags)
    wait_for_steps(survivor, workdir, 2)
    victim.kill()
    begin = time.monotonic()
    output, _ = survivor.communicate(timeout=100)
    assert time.monotonic() - begin < 60
    assert survivor.returncode == 1 and "Traceback" not in output
    assert "process 0 of 2 stops: another one has died or cannot be reached" in output
    victim.communicate()

    saved = faults.steps(workdir)[-1]
    both = start_two(workdir, *flags)
    line = next(line for line in both[0].stdout if " steps on " in line)
    assert f"going on after step {saved}" in line
    both[1].send_signal(signal.SIGTERM)  # one is enough, and before the first step it is easiest to lose
    outputs = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert all(f"stopped after step {faults.steps(workdir)[-1]} of 8000, saved" in output for output in outputs)


def test_a_full_disk_ends_the_run_and_nothing_is_lost(flags, small_disk, capsys):
    disk = small_disk("2m")
    flags = [*flags, "--config.keep_checkpoints=100"]
    assert train(disk / "run", *flags) == 2
    saved, output = faults.steps(disk / "run"), capsys.readouterr().err
    expected = f"cannot be written: No space left on device; the checkpoint of step {saved[-1]} is whole"
    assert expected in output.splitlines()[-1]
    assert all(checkpoint.damage(disk / "run" / "checkpoints" / str(step)) is None for step in saved)
    subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
    assert train(disk / "run", *flags) == 0
    assert f"going on after step {saved[-1]}" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(flags, tmp_path, capsys, caplog):
    """One flipped bit; other damage is tests/workdir/checkpoint_test.py's business."""
    assert train(tmp_path / "run", *flags) == 0
    whole = faults.state(tmp_path / "run")
    *_, before, newest = faults.steps(tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / str(newest)
    file = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert train(tmp_path / "run", *flags) == 0
    output = caplog.text + "".join(capsys.readouterr())
    assert f"checkpoints/{newest} is damaged ({file.relative_to(folder)} is not what was written)" in output
    assert f"going on after step {before}" in output
    after = faults.state(tmp_path / "run")
    assert all(np.array_equal(whole[path], after[path]) for path in whole)
    assert (tmp_path / "run" / "damaged" / f"{newest}-0").is_dir()
