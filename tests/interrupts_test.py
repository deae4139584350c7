"""SIGINT and SIGTERM, sent to this process where a verb is at work, and to small ones of their own."""

import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import time

import conftest
import pytest

from basisnet_jax import cli, interrupts
from basisnet_jax.data import pipeline

TOLD = {signal.SIGINT: (130, "basisnet: interrupted\n"), signal.SIGTERM: (143, "basisnet: ended by SIGTERM\n")}
CONFIG = f"--config={conftest.ROOT / 'configs' / 'digits.py'}"
# A verb with its flags, the function that the signal comes in, and the signal.
CASES = [
    (["evaluate", "--workdir=RUN", "--threshold=0.5"], "inference.evaluate.summarize", signal.SIGINT),
    (["evaluate", "--workdir=RUN", "--threshold=0.5"], "workdir.files.json.dump", signal.SIGTERM),
    (["predict", "--workdir=RUN", "--threshold=0.5", "IMAGE"], "inference.predict.rows", signal.SIGINT),
    (["predict", "--workdir=RUN", "--threshold=0.5", "IMAGE"], "data.folder.encode", signal.SIGTERM),
    (["calibrate", "--workdir=RUN", "--max_drop=0.01"], "inference.calibrate.intervals", signal.SIGINT),
    (["calibrate", "--workdir=RUN", "--max_drop=0.01"], "workdir.files.json.dump", signal.SIGTERM),
    (["export", "--workdir=RUN", "--format=safetensors", "--output=OUT", "--threshold=0.5"], "export.describe", 2),
    (["export", "--workdir=RUN", "--format=specialist", "--output=OUT", "--class=3"], "workdir.runs.claim", 15),
    (["report", "--workdir=RUN"], "report.run.render", signal.SIGINT),
    (["madds", CONFIG], "madds.count", signal.SIGINT),
    (["plan", CONFIG, "--topology=v5e:1x1"], "plan.find_machine", signal.SIGINT),
    (["sweep", "--sweep=configs/sweeps/bases_width.py", "--workdir=OUT"], "sweep.configured", signal.SIGINT),
    (["train", CONFIG, "--config.data_dir=DATA", "--workdir=OUT"], "models.create", signal.SIGINT),
    (["train", CONFIG, "--config.data_dir=DATA", "--workdir=OUT"], "data.pipeline.open", signal.SIGTERM),
]


@pytest.fixture(scope="module")
def run(tiny, make_run, data_dir, tmp_path_factory):
    config = tiny(data_dir=data_dir, eval_batch_size=40, test_split="test[:40]")
    pipeline.open(config)  # TFDS tells at length when it prepares them
    return make_run(config, tmp_path_factory.mktemp("run"))


def sends(monkeypatch, place, number, calls=1):
    """From its so manieth call on, the function gets the signal before it does anything."""
    *modules, name = f"basisnet_jax.{place}".split(".")
    holder = pkgutil.resolve_name(".".join(modules))
    whole, left = getattr(holder, name), iter(range(calls - 1))

    def sending(*args, **keywords):
        if next(left, None) is None:
            monkeypatch.setattr(holder, name, whole)
            os.kill(os.getpid(), number)
        return whole(*args, **keywords)

    monkeypatch.setattr(holder, name, sending)


@pytest.mark.odd("signal")
@pytest.mark.parametrize(("argv", "place", "number"), CASES, ids=[f"{c[0][0]} {c[1]} {int(c[2])}" for c in CASES])
def test_a_signal_ends_a_verb_in_one_line(
    run, data_dir, argv, place, number, monkeypatch, tmp_path, capsys, record_property
):
    workdir = shutil.copytree(run, tmp_path / "run")
    image = next((conftest.ROOT / "docs").rglob("*.png"), None) or next(conftest.ROOT.rglob("*.png"))
    words = {"RUN": workdir, "OUT": tmp_path / "out", "IMAGE": image, "DATA": data_dir}
    for word, value in words.items():
        argv = [argument.replace(word, str(value)) for argument in argv]
    before = sorted(tmp_path.rglob("*"))
    handlers = [signal.getsignal(each) for each in interrupts.SIGNALS]
    monkeypatch.chdir(conftest.ROOT)
    sends(monkeypatch, place, number)
    code = cli.main(argv)
    err = capsys.readouterr().err
    conftest.record_told(record_property, code, err)
    assert (code, err) == TOLD[number]
    assert sorted(tmp_path.rglob("*")) == before
    assert [signal.getsignal(each) for each in interrupts.SIGNALS] == handlers


@pytest.mark.slow
@pytest.mark.odd("signal")
@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_a_signal_lets_training_save(number, data_dir, monkeypatch, tmp_path, capfd, record_property):
    flags = [CONFIG, f"--config.data_dir={data_dir}", f"--workdir={tmp_path}/run", "--config.log_every_steps=3"]
    flags += [f"--config.{name}.{field}" for name in ("network", "preview") for field in ("width=0.1", "num_stages=1")]
    flags += [f"--config.{name}.stage_strides=(2,)" for name in ("network", "preview")]
    flags += ["--config.image_size=16", "--config.preview.image_size=8"]
    sends(monkeypatch, "workdir.runs.Log.write", number, calls=2)
    code = cli.main(["train", *flags])
    out, err = capfd.readouterr()
    conftest.record_told(record_property, code, err)
    name = signal.Signals(number).name
    told = f"basisnet: {name}: the run saves after this step and stops; a second signal ends it at once"
    assert code == 0 and err.count(told) == 1 and "Traceback" not in err, err
    assert "stopped after step 6 of 576, saved; the same command goes on from there" in out
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["6"]


@pytest.mark.odd("signal")
def test_while_the_command_is_imported_ctrl_c_ends_it_without_a_word(tmp_path, record_property):
    (tmp_path / "absl.py").write_text("import time\nprint('imported', flush=True)\ntime.sleep(60)")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(conftest.ROOT)])}
    command = [sys.executable, "-m", "basisnet_jax", "configs"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "imported\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    conftest.record_told(record_property, process.returncode, err)
    assert (process.returncode, out, err) == (-signal.SIGINT, "", "")


BUSY = """
import hashlib, sys, time
from basisnet_jax import cli, interrupts
interrupts.GRACE_S = 1.0
def busy(given):
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # as XLA's compiler: long, without the GIL, and deaf to signals
def training(given):
    with interrupts.noted() as received:
        busy(given)
cli.VERBS["busy"], cli.VERBS["training"] = busy, training
sys.argv[1:] = sys.argv[1:2]
cli.main()
"""


@pytest.mark.odd("signal")
@pytest.mark.parametrize(
    ("verb", "numbers", "err"),
    [
        ("busy", [signal.SIGINT], "basisnet: interrupted\n"),
        ("busy", [signal.SIGTERM], "basisnet: ended by SIGTERM\n"),
        ("busy", [signal.SIGINT, signal.SIGINT], ""),
        ("training", [signal.SIGTERM, signal.SIGINT], "basisnet: SIGTERM: the run saves after this step and stops; a "),
        ("training", [signal.SIGINT, signal.SIGTERM], "basisnet: SIGINT: the run saves after this step and stops; a "),
    ],
)
def test_a_process_ends_although_python_does_not_come_to_the_signal(verb, numbers, err, record_property):
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, verb], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "busy\n"
    for number in numbers:
        time.sleep(0.2)  # two of a kind that wait are one
        process.send_signal(number)
    begin = time.monotonic()
    _, found = process.communicate(timeout=20)
    conftest.record_told(record_property, process.returncode, found)
    assert process.returncode == 128 + numbers[-1] and found.startswith(err) and found.count("\n") == bool(err), found
    assert time.monotonic() - begin < 10
