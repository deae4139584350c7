"""The `basisnet` command. Every verb parses its flags, then calls one function.

Exit codes: 0; 2 for a user's mistake, told in one line; 1 where some of many runs have not finished or another process
of the run is gone, and, with a traceback, for a fault of ours.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable

# Before anything imports TensorFlow: its start-up notes are no news to the user.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # on some processors it tells of oneDNN at any level; none needs it

from absl import flags, logging

from basisnet_jax.errors import LostProcess, Unfinished, UserError
from basisnet_jax.parsing import number, parse, resolve


def train(argv: list[str]) -> None:
    """basisnet train --config=FILE[:args] --workdir=DIR [--config.field=value ...]
    [--coordinator=HOST:PORT --processes=N --process=I], where the cluster does not say it"""
    parsed = parse(argv, "config", "workdir", **PROCESSES)
    from basisnet_jax.distributed import partition
    from basisnet_jax.training import loop

    with partition.joined(*(parsed[name].value for name in PROCESSES)):
        loop.train(resolve(parsed.config), parsed.workdir)


def evaluate(argv: list[str]) -> None:
    """basisnet evaluate --workdir=DIR [--checkpoint=STEP|best] [--threshold=T], and as many processes as train takes"""
    parsed = parse(argv, "workdir", checkpoint=None, threshold=None, **PROCESSES)
    from basisnet_jax.distributed import partition
    from basisnet_jax.inference import evaluate
    from basisnet_jax.workdir import runs

    threshold = parsed.threshold if parsed.threshold is None else number("threshold", parsed.threshold)
    config = runs.load_config(parsed.workdir)
    with partition.joined(*(parsed[name].value for name in PROCESSES)):
        report = evaluate.evaluate(config, parsed.workdir, parsed.checkpoint, threshold)
        print(evaluate.table(report))


def madds(argv: list[str]) -> None:
    """basisnet madds --config=FILE[:args] [--json] [--share=0.35]"""
    parsed = parse(argv, "config", json=False, share="0.35")
    import jax

    from basisnet_jax import madds, models, preprocess
    from basisnet_jax.data import pipeline

    config = pipeline.completed(resolve(parsed.config))
    images = max(1, config.batch_size // config.accumulate // jax.device_count())
    items = madds.count(models.create_abstract(config), preprocess.image_shape(config), images)
    share = number("share", parsed.share)
    print(json.dumps(madds.as_json(items, share)) if parsed.json else madds.table(items, share))


def plan(argv: list[str]) -> None:
    """basisnet plan --config=FILE[:args] --topology=v5e:16x16 [--json] [--examples=N]"""
    parsed = parse(argv, "config", "topology", json=False, examples=None)
    examples = parsed.examples and number("examples", parsed.examples)
    if examples is not None and (examples < 1 or examples % 1):
        raise UserError(f"--examples={parsed.examples!r}, expected a whole number above 0")
    from basisnet_jax import plan

    report = plan.plan(resolve(parsed.config), parsed.topology, examples and int(examples))
    print(json.dumps(report) if parsed.json else plan.table(report))


def calibrate(argv: list[str]) -> None:
    """basisnet calibrate --workdir=DIR (--target_madds=198e6 | --max_drop=0.003) [--checkpoint=STEP|best]
    [--criterion=max_softmax|margin|entropy] [--temperature_scaling]: when evaluate and predict stop at the preview"""
    limits = {"target_madds": None, "max_drop": None}
    parsed = parse(argv, "workdir", **limits, checkpoint=None, criterion="max_softmax", temperature_scaling=False)
    given = {name: number(name, parsed[name].value) for name in limits if parsed[name].value is not None}
    if len(given) != 1:
        raise UserError(f"{' and '.join(given) or 'no limit'} given, expected --target_madds=N or --max_drop=FRACTION")
    from basisnet_jax.inference import calibrate

    report = calibrate.calibrate(
        parsed.workdir,
        **given,
        which=parsed.checkpoint,
        criterion=parsed.criterion,
        temperature_scaling=parsed.temperature_scaling,
    )
    print(calibrate.table(report))


def predict(argv: list[str]) -> None:
    """basisnet predict (--workdir=DIR [--checkpoint=STEP|best] | --export=DIR) (FILE | FOLDER | -)... [--json | --csv]
    [--threshold=T], where - is for a list of files on stdin, and an export is what the next verb writes"""
    sources = {"workdir": None, "export": None}
    parsed = parse(argv, rest="inputs", **sources, json=False, csv=False, checkpoint=None, threshold=None)
    if parsed.json and parsed.csv:
        raise UserError("--json and --csv given, expected one of them")
    given = [name for name in sources if parsed[name].value is not None]
    if len(given) != 1:
        raise UserError(f"{' and '.join(given) or 'no model'} given, expected --workdir=DIR or --export=DIR")
    if parsed.export and parsed.checkpoint:
        raise UserError("--checkpoint given with --export, which holds one checkpoint only")
    from basisnet_jax.inference import predict

    threshold = parsed.threshold if parsed.threshold is None else number("threshold", parsed.threshold)
    form = "json" if parsed.json else "csv" if parsed.csv else "table"
    predict.predict(parsed.workdir, parsed.inputs, parsed.checkpoint, threshold, export=parsed.export, form=form)


def export(argv: list[str]) -> None:
    """basisnet export --workdir=DIR --format=tflite|onnx|saved_model|stablehlo|safetensors --output=DIR
    [--checkpoint=STEP|best] [--precision=float32|float16|int8] [--threshold=T] [--tolerance=T] [--images=FILE|FOLDER]
    basisnet export --workdir=DIR --format=specialist (--image=FILE | --class=NAME) --output=WORKDIR: a static run"""
    options = dict.fromkeys(("precision", "threshold", "tolerance", "images"))
    kinds = dict.fromkeys(("image", "class"))
    parsed = parse(argv, "workdir", "format", "output", checkpoint=None, **options, **kinds)
    allowed, refused = (kinds, options) if parsed.format == "specialist" else (options, kinds)
    if wrong := [name for name in refused if parsed[name].value is not None]:
        raise UserError(f"--{wrong[0]} has no meaning for --format={parsed.format}")
    given = {name: parsed[name].value for name in allowed if parsed[name].value is not None}
    if parsed.format == "specialist":
        from basisnet_jax.export import specialist

        if len(given) != 1:
            raise UserError(f"{' and '.join(given) or 'nothing'} given, expected --image=FILE or --class=NAME")
        print(specialist.extract(parsed.workdir, parsed.output, which=parsed.checkpoint, **given))
        return
    for name in given.keys() & {"threshold", "tolerance"}:
        given[name] = number(name, given[name])
    from basisnet_jax import export

    manifest = export.export(parsed.workdir, parsed.format, parsed.output, which=parsed.checkpoint, **given)
    print(export.table(manifest))


def report(argv: list[str]) -> None:
    """basisnet report --workdir=DIR [--checkpoint=STEP|best] [--split=SPLIT] [--images=2000] [--output=FILE],
    where DIR is a run's or a sweep's: one HTML page about it. Its galleries choose among the first so many images"""
    parsed = parse(argv, "workdir", checkpoint=None, split=None, images=None, output=None)
    images = None if parsed.images is None else number("images", parsed.images)
    if images is not None and (images < 1 or images % 1):
        raise UserError(f"--images={parsed.images!r}, expected a whole number above 0")
    from basisnet_jax import report

    print(report.report(parsed.workdir, parsed.checkpoint, parsed.split, images and int(images), parsed.output))


def import_(argv: list[str]) -> None:
    """basisnet import --network=NAME --weights=FILE.pth|.safetensors --workdir=DIR [--origin=tensorflow|pytorch]"""
    parsed = parse(argv, "network", "weights", "workdir", origin=None)
    from basisnet_jax.training import import_weights

    import_weights.import_weights(parsed.network, parsed.weights, parsed.workdir, parsed.origin)


def sweep(argv: list[str]) -> None:
    """basisnet sweep --sweep=configs/sweeps/FILE.py --workdir=DIR [--cluster=local|slurm] [--jobs=N at once]"""
    parsed = parse(argv, "sweep", "workdir", cluster="local", jobs=None)
    jobs = parsed.jobs and number("jobs", parsed.jobs)
    if jobs is not None and (jobs < 1 or jobs % 1):
        raise UserError(f"--jobs={parsed.jobs!r}, expected a whole number above 0")
    from basisnet_jax import sweep

    sweep.sweep(parsed.sweep, parsed.workdir, parsed.cluster, jobs and int(jobs))


PROCESSES = {"coordinator": None, "processes": None, "process": None}
VERBS: dict[str, Callable[[list[str]], None]] = {
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
}


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    quiet_logs()
    keep_freed_memory()
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print("\n".join(verb.__doc__ for verb in VERBS.values()))
            return 0
        if argv[0] not in VERBS:
            raise UserError(f"verb {argv[0]!r} is unknown, expected one of {', '.join(VERBS)}")
        VERBS[argv[0]](argv[1:])
        return 0
    except (UserError, LostProcess, Unfinished) as error:
        print(f"basisnet: {error}", file=sys.stderr)
        code = 2 if isinstance(error, UserError) else 1
    except BrokenPipeError:  # whoever reads the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception:
        traceback.print_exc()
        code = 1
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        # Usually JAX waits at the end for the run's other processes, and they wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


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
    flags.FLAGS.mark_as_parsed()
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
    unraisable = sys.unraisablehook

    def shown_unraisable(report):
        if not str(report.exc_value).startswith(("Event loop is closed", "Encountered error while reading array")):
            unraisable(report)

    sys.unraisablehook = shown_unraisable


if __name__ == "__main__":
    sys.exit(main())
