"""The `basisnet` command. Every verb calls one function with its flags, which `flags.py` declares.

Exit codes: 0; 2 for a user's mistake, told in one line; 1 where some of many runs have not finished or another process
of the run is gone, and, with a traceback, for a fault of ours; 130 after Ctrl-C (SIGINT) and 143 after SIGTERM.
"""

import contextlib
import ctypes
import errno
import importlib.metadata
import importlib.util
import json
import os
import signal
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable

# Before anything imports TensorFlow: its start-up notes are no news to the user.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # on some processors it tells of oneDNN at any level; none needs it

import absl.flags
from absl import logging

from basisnet_jax import flags, interrupts, parsing, paths
from basisnet_jax.errors import LostProcess, Unfinished, UserError, one_line


def train(given: Namespace) -> None:
    """Train a network; the same command goes on where it stopped."""
    from basisnet_jax.distributed import processes
    from basisnet_jax.training import loop

    config = parsing.resolve(given.config)
    with processes.joined(given.coordinator, given.processes, given.process):
        loop.train(config, given.workdir, given.changed_data)


def evaluate(given: Namespace) -> None:
    """Evaluate a run on its test split; writes DIR/evaluation.json."""
    from basisnet_jax.distributed import processes
    from basisnet_jax.inference import evaluate
    from basisnet_jax.workdir import runs

    runs.load_config(given.workdir)  # a wrong workdir is told before processes wait for each other
    runs.check_writable(given.workdir)
    with processes.joined(given.coordinator, given.processes, given.process):
        report = evaluate.evaluate(given.workdir, given.checkpoint, given.threshold)
        print(evaluate.table(report))


def calibrate(given: Namespace) -> None:
    """Choose when evaluate, predict and export stop at the preview; writes DIR/early_exit.json."""
    from basisnet_jax.inference import calibrate

    report = calibrate.calibrate(
        given.workdir,
        target_madds=given.target_madds,
        max_drop=given.max_drop,
        which=given.checkpoint,
        criterion=given.criterion,
        temperature_scaling=given.temperature_scaling,
    )
    print(calibrate.table(report))


def predict(given: Namespace) -> None:
    """Classify images: label, confidence, and which stage answered."""
    if given.export and given.checkpoint:
        raise UserError("--checkpoint given with --export, which holds one checkpoint only")
    from basisnet_jax.inference import predict

    form = "json" if given.json else "csv" if given.csv else "table"
    predict.predict_files(
        given.workdir, given.inputs, given.checkpoint, given.threshold, export=given.export, form=form, top=given.top
    )


def export(given: Namespace) -> None:
    """Write the model of a run for another runtime, or one specialist as a static run."""
    kinds, options = ("image", "class"), ("precision", "threshold", "tolerance", "images")
    allowed, refused = (kinds, options) if given.format == "specialist" else (options, kinds)
    values = {name: value for name, value in vars(given).items() if name in kinds + options and value is not None}
    if wrong := [name for name in refused if name in values]:
        raise UserError(f"--{wrong[0]} has no meaning for --format={given.format}")
    if given.format == "specialist":
        from basisnet_jax.export import specialist

        if len(values) != 1:
            names = " and ".join(f"--{name}" for name in allowed if name in values)
            raise UserError(f"{names or 'nothing'} given, expected --image=FILE or --class=NAME")
        print(specialist.extract(given.workdir, given.output, which=given.checkpoint, **values))
        return
    from basisnet_jax import export

    manifest = export.export(given.workdir, given.format, given.output, which=given.checkpoint, **values)
    print(export.table(manifest))


def madds(given: Namespace) -> None:
    """Count multiply-adds and parameters, layer by layer."""
    import jax

    from basisnet_jax import madds, models, preprocess

    config = parsing.resolve(given.config)
    models.check_preview(config)
    if not config.num_classes:
        from basisnet_jax.data.source import Source

        config = Source.find(config).completed(config)
    images = max(1, config.batch_size // config.accumulate // jax.device_count())
    items = madds.count(models.create_abstract(config), preprocess.of(config).shape, images)
    print(json.dumps(madds.as_json(items, given.share)) if given.json else madds.table(items, given.share))


def plan(given: Namespace) -> None:
    """Compile the train step for a TPU or GPU without having one: memory, FLOPs, bytes."""
    from basisnet_jax import models, plan

    config = parsing.resolve(given.config)
    models.check_preview(config)
    report = plan.plan(config, given.topology, given.examples)
    print(json.dumps(report) if given.json else plan.table(report))


def report(given: Namespace) -> None:
    """Write one HTML page about a run or a sweep."""
    from basisnet_jax import report

    print(report.report(given.workdir, given.checkpoint, given.split, given.images, given.output))


def import_(given: Namespace) -> None:
    """Make published weights a run of a static network."""
    from basisnet_jax.training import import_weights

    import_weights.import_weights(given.network, given.weights, given.workdir, given.origin)


def sweep(given: Namespace) -> None:
    """Train many variants of a config, here or on Slurm; the same command goes on where it stopped."""
    from basisnet_jax import sweep

    sweep.sweep(given.sweep, given.workdir, given.cluster, given.jobs)


def configs(given: Namespace) -> None:
    """List the packaged configs and their arguments."""
    described = parsing.described_configs()
    width = max(len(name) for name, _, _ in described) + 2
    for name, summary, arguments in described:
        print(f"{name:{width}}{summary}")
        if arguments:
            print(f"{'':{width}}{arguments}")


VERBS: dict[str, Callable[[Namespace], None]] = {
    "train": train,
    "evaluate": evaluate,
    "calibrate": calibrate,
    "predict": predict,
    "export": export,
    "madds": madds,
    "plan": plan,
    "report": report,
    "import": import_,
    "sweep": sweep,
    "configs": configs,
}


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns the exit code. Without `argv`, as a process, it ends that at a signal."""
    if sys.stderr is None:  # closed: else messages go to stdout, and libjpeg's to whatever file is opened next
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = os.fdopen(2, "w")
    quiet_logs()
    keep_freed_memory()
    paths.expand_environment()
    try:
        with interrupts.handled():
            run(sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()
        return 0
    except (UserError, LostProcess, Unfinished) as error:
        if result := getattr(error, "result", ""):
            print(result)
        print(f"basisnet: {one_line(str(error))}", file=sys.stderr)
        code = 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        print(f"basisnet: {interrupts.told(number)}", file=sys.stderr, flush=True)
        if argv is None:
            interrupts.end(number)
        code = interrupts.code(number)
    except BrokenPipeError:  # whoever reads the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            traceback.print_exc()
            code = 1
        else:  # of no file: what was printed finds no place
            print(f"basisnet: the output cannot be written: {error.strerror}", file=sys.stderr)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 2
    except Exception:
        traceback.print_exc()
        code = 1
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        # Usually JAX waits at the end for the run's other processes, and they wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def run(argv: list[str]) -> None:
    """Runs the verb, or prints the help or the version that is asked for."""
    if argv[:1] == ["help"]:
        argv = [*argv[1:2], "--help"]
    if not argv or argv[0] in ("-h", "--help"):
        print(help_text())
    elif argv[0] == "--version":
        print(f"basisnet {importlib.metadata.version('basisnet_jax')}")
    elif argv[0] not in VERBS:
        raise UserError(f"verb {argv[0]!r} is unknown, expected one of {', '.join(VERBS)}")
    else:
        parser = flags.create_parsers(VERBS)[argv[0]]
        if "-h" in argv or "--help" in argv:
            print(parser.format_help(), end="")
        else:
            VERBS[argv[0]](flags.read(parser, argv[1:]))


def help_text() -> str:
    """The verbs, a line each."""
    verbs = "\n".join(f"  {name:11}{run.__doc__}" for name, run in VERBS.items())
    return f"""usage: basisnet VERB [--flag=value ...]

BasisNet in JAX/Flax: train, evaluate and deploy it.

{verbs}

  basisnet VERB --help   the flags of a verb, with their defaults
  basisnet --version     the version

A first run: basisnet train --config=digits --workdir=runs/digits"""


def keep_freed_memory() -> None:
    """Where JAX has the CPU alone: what a step frees stays with the process, for the next step. glibc only.

    XLA takes a program's temporaries from the C library, which gives such large pieces back to the system each time. To
    have their pages anew takes a third of MobileNetV3's training step (32 images: 2.0 s, so 1.4). It must come before
    any thread: each would have an arena of its own, too small for them. An input pipeline with many threads could
    be the slower for one arena; hence not where an accelerator computes.
    """
    accelerators = any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not accelerators:
        with contextlib.suppress(AttributeError, TypeError):  # another C library
            arena_max, mmap_max, trim_threshold = -8, -4, -1  # malloc.h
            mallopt = ctypes.CDLL(None).mallopt
            for option, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, -1)):
                mallopt(option, value)


def quiet_logs() -> None:
    """Of what the libraries log, shows clu's progress and warnings, but none of Orbax's: its errors are raised."""
    absl.flags.FLAGS.mark_as_parsed()
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(logging.converter.logging.Formatter("%(message)s"))

    def shown(record):
        if record.msg == "Setting work unit notes: %s":  # clu's ReportProgress
            record.msg = "%s"
            return True
        if record.getMessage().startswith("Using custom data configuration"):  # TFDS of a folder, each time it is read
            return False
        return record.levelno >= logging.converter.STANDARD_WARNING and "orbax" not in record.pathname

    handler.addFilter(shown)
    # TensorFlow's own deprecations inside TFDS.
    logging.converter.logging.getLogger("tensorflow").setLevel(logging.converter.logging.ERROR)
    # Where one of Orbax's reads fails, the others are reported too: by asyncio, and as errors that cannot be raised.
    logging.converter.logging.getLogger("asyncio").setLevel(logging.converter.logging.CRITICAL)
    logging.converter.logging.getLogger("gcsfs").setLevel(logging.converter.logging.CRITICAL)  # raises what it logs
    unraisable = sys.unraisablehook

    def shown_unraisable(report):
        if isinstance(report.exc_value, interrupts.Interrupted):  # raised where Python drops it, as in a finalizer
            interrupts.end(report.exc_value.number, interrupts.told(report.exc_value.number))
        if not str(report.exc_value).startswith(("Event loop is closed", "Encountered error while reading array")):
            unraisable(report)

    sys.unraisablehook = shown_unraisable


if __name__ == "__main__":
    sys.exit(main())
