"""The flags of every verb of `basisnet`, and the parser that tells a mistake in one line.

Types are checked here; what a value means, such as whether a run has that checkpoint, is checked where it is used.
Choices are repeated here, because the modules that they belong to import JAX, and `--help` should not wait for that.
"""

import argparse
import difflib
import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from basisnet_jax import parsing, paths
from basisnet_jax.errors import UserError

FORMATS = ("tflite", "onnx", "saved_model", "stablehlo", "safetensors", "specialist")
PRECISIONS = ("float32", "float16", "int8")
CRITERIA = ("max_softmax", "margin", "entropy")
CLUSTERS = ("local", "slurm")
FIELD = "--config.FIELD=VALUE"
ORIGINS = ("tensorflow", "pytorch")


class Kind(NamedTuple):
    """What a flag takes: in words, and from its text, raising ValueError or OverflowError where it is none."""

    expected: str
    convert: Callable


def finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError
    return value


def at_least(least: float, most: float = math.inf, kind: type = float) -> Callable:
    def convert(text):
        value = finite(text)
        if not least <= value <= most or kind(value) != value:
            raise ValueError
        return kind(value)

    return convert


def one_of(choices: Iterable[str]) -> Kind:
    def convert(text):
        if text not in choices:
            raise ValueError
        return text

    return Kind(f"one of {', '.join(choices)}", convert)


TEXT = Kind("text", str)
PATH = Kind("a path on this machine, such as of a mounted bucket", paths.local)
RUN = Kind("a folder on this machine or gs://BUCKET/FOLDER", paths.of_run)
NUMBER = Kind("a number", finite)
NOT_NEGATIVE = Kind("a number not below 0", at_least(0))
POSITIVE = Kind("a number above 0", at_least(math.ulp(0.0)))
SHARE = Kind("a number from 0 to 1", at_least(0, 1))
COUNT = Kind("a whole number above 0", at_least(1, kind=int))


class Parser(argparse.ArgumentParser):
    """Of one verb. A mistake raises UserError, with what was given and what was expected."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def flags(self) -> list[str]:
        return [flag for flag in self._option_string_actions if flag not in ("-h", FIELD)]

    def error(self, message: str):
        """argparse calls it with messages that name the flag, but seldom what was expected of it."""
        named = [self._option_string_actions[flag] for flag in re.findall(r"--\w+", message) if flag in self.flags()]
        wanted = [f"{action.option_strings[0]}={action.metavar}" for action in named]
        names = [action.option_strings[0] for action in named]
        if "are required" in message:
            raise UserError(f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing")
        if "is required" in message:
            raise UserError(f"{' or '.join(wanted)} is missing")
        if "not allowed with" in message:
            raise UserError(f"{' and '.join(reversed(names))} given, expected one of them")
        if "expected one argument" in message:
            raise UserError(f"{names[0]} is given without a value, expected {wanted[0]}")
        if "ignored explicit argument" in message:
            raise UserError(f"{names[0]} takes no value, given {message.rpartition('argument ')[2]}")
        raise UserError(message)


def create_parsers(verbs: dict[str, Callable]) -> dict[str, Parser]:
    """The parser of each verb, which the verb's docstring describes."""
    parsers = {}
    for name, run in verbs.items():
        parsers[name] = Parser(prog=f"basisnet {name}", description=run.__doc__)
        if name in VERBS:
            VERBS[name](parsers[name])
    return parsers


def read(parser: Parser, argv: list[str]) -> argparse.Namespace:
    """The flags of a verb, each an attribute; `config` is the config itself, its overrides done."""
    known = parser.flags()
    argv, overrides = parsing.take_overrides(argv) if "--config" in known else (argv, [])
    end = argv.index("--") if "--" in argv else len(argv)
    argv, behind = argv[:end], argv[end + 1 :]  # argparse itself loses what is behind, where flags are intermixed
    for argument in argv:
        flag = argument.partition("=")[0]
        if flag[:1] == "-" and flag != "-" and flag not in known and not parsing.NUMBER.match(flag):
            close = difflib.get_close_matches(flag, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
            raise UserError(f"flag {flag} is unknown, {hint}")
    # Intermixed: flags may also stand behind and between the images of `predict`.
    parsed, others = parser.parse_known_intermixed_args(argv)
    getattr(parsed, "inputs", others).extend(map(converter("image", PATH), behind))
    if others:
        raise UserError(f"unexpected argument {others[0]!r}; flags are written --name=value")
    if "--config" in known:
        parsed.config = parsing.load(parsed.config, overrides)
    return parsed


def add(parser, flag: str, metavar: str, meaning: str, kind: Kind = TEXT, *, choices: Iterable[str] = (), **options):
    """Adds a flag that takes a value. `shown` is the default in words, of an optional flag whose default is None."""
    if choices:
        kind = one_of(choices)
        meaning = f"{meaning}: {', '.join(choices)}"
    elif kind not in (TEXT, PATH, RUN):
        meaning = f"{meaning}; {kind.expected}"
    shown = options.pop("shown", options.get("default"))
    if shown is not None:
        meaning = f"{meaning} (default: {shown})"

    parser.add_argument(flag, metavar=metavar, help=meaning.replace("%", "%%"), type=converter(flag, kind), **options)


def converter(flag: str, kind: Kind) -> Callable[[str], object]:
    def convert(text):
        try:
            return kind.convert(text)
        except (ValueError, OverflowError):
            raise UserError(f"{flag}={text!r}, expected {kind.expected}") from None

    return convert


def switch(parser, flag: str, meaning: str) -> None:
    """Adds a flag without a value."""
    parser.add_argument(flag, action="store_true", help=f"{meaning} (default: off)")


def config(parser: Parser) -> None:
    meaning = "a packaged config (`basisnet configs` lists them) or a Python file, and its arguments"
    add(parser, "--config", "NAME|FILE[:ARGS]", f"{meaning}, as in digits:bases=4,seed=1", required=True)
    # For --help only: parsing.take_overrides takes all fields before argparse sees them.
    meaning = "a field, as in --config.augment.flip=True; configs/default.py lists all (default: as the config says)"
    parser.add_argument(FIELD, action="store_true", default=argparse.SUPPRESS, help=meaning)


def workdir(parser, meaning: str = "of the run", kind: Kind = RUN, **options) -> None:
    add(parser, "--workdir", "DIR", meaning, kind, **options)


def checkpoint(parser) -> None:
    add(parser, "--checkpoint", "STEP|best", "a step, or the best on the validation split", shown="the newest")


def threshold(parser) -> None:
    meaning = "confidence at which an image stops at the preview"
    add(parser, "--threshold", "T", meaning, NUMBER, shown="as calibrated, else as evaluated")


def processes(parser) -> None:
    group = parser.add_argument_group("several processes", "Where the cluster does not tell them; all three together.")
    add(group, "--coordinator", "HOST:PORT", "address of process 0", shown="as the cluster says")
    add(group, "--processes", "N", "how many there are; a whole number", shown="as the cluster says, else 1")
    add(group, "--process", "I", "which one this is, from 0 to N - 1", shown="as the cluster says")


def train(parser: Parser) -> None:
    config(parser)
    workdir(parser, "new, or of this run, which then goes on where it stopped", required=True)
    switch(parser, "--changed_data", "go on although the images of the run's folder have changed")
    processes(parser)


def evaluate(parser: Parser) -> None:
    workdir(parser, required=True)
    checkpoint(parser)
    threshold(parser)
    processes(parser)


def calibrate(parser: Parser) -> None:
    workdir(parser, "of the run of a BasisNet", required=True)
    limit = parser.add_mutually_exclusive_group(required=True)
    add(limit, "--target_madds", "N", "multiply-adds per image that it may take on average", POSITIVE)
    add(limit, "--max_drop", "FRACTION", "top-1 that it may cost, as in 0.003", NOT_NEGATIVE)
    checkpoint(parser)
    add(parser, "--criterion", "NAME", "what confidence is", choices=CRITERIA, default="max_softmax")
    switch(parser, "--temperature_scaling", "scale the preview's logits so that their likelihood is highest")


def predict(parser: Parser) -> None:
    model = parser.add_mutually_exclusive_group(required=True)
    workdir(model)
    add(model, "--export", "DIR", "what `basisnet export` wrote", PATH)
    meaning = "images; -: a list of files on stdin"
    parser.add_argument("inputs", metavar="FILE|FOLDER|-", nargs="*", help=meaning, type=converter("image", PATH))
    form = parser.add_mutually_exclusive_group()
    switch(form, "--json", "one JSON object a line instead of a table")
    switch(form, "--csv", "CSV instead of a table")
    add(parser, "--top", "K", "the K best classes with their probabilities", COUNT, shown="the best class only")
    checkpoint(parser)
    threshold(parser)


def export(parser: Parser) -> None:
    workdir(parser, required=True)
    add(parser, "--format", "NAME", "of the export", choices=FORMATS, required=True)
    meaning = "new or empty; of a specialist it becomes the workdir of a static run"
    add(parser, "--output", "DIR", meaning, PATH, required=True)
    checkpoint(parser)
    group = parser.add_argument_group("all formats but specialist")
    meaning = "of the stored weights; float16 and int8 with tflite only"
    add(group, "--precision", "NAME", meaning, choices=PRECISIONS, shown="float32")
    threshold(group)
    meaning = "how much logits may differ from JAX's, relative to the largest"
    add(group, "--tolerance", "T", meaning, NUMBER, shown="1e-4 with float32, 0.01 with float16, 0.2 with int8")
    add(group, "--images", "FILE|FOLDER", "what the export is verified on", PATH, shown="the validation split")
    group = parser.add_argument_group("format specialist", "Of one of the two; exactly one is expected.")
    add(group, "--image", "FILE", "the image that the specialist is for", PATH, shown="none")
    add(group, "--class", "NAME", "the class that the specialist is for, a name or a label", shown="none")


def madds(parser: Parser) -> None:
    config(parser)
    switch(parser, "--json", "one JSON object instead of a table")
    add(parser, "--share", "FRACTION", "of the images that stop at the preview", SHARE, default=0.35)


def plan(parser: Parser) -> None:
    config(parser)
    add(parser, "--topology", "CHIP:SHAPE", "the machine to compile for, as in v5e:16x16 or h100:8", required=True)
    switch(parser, "--json", "one JSON object instead of a table")
    add(parser, "--examples", "N", "in the training split", COUNT, shown="as the data set says")


def report(parser: Parser) -> None:
    workdir(parser, "of a run, or of a sweep, which takes --output only", required=True)
    checkpoint(parser)
    add(parser, "--split", "SPLIT", "whose images are looked at, in TFDS's syntax", shown="the config's test split")
    add(parser, "--images", "N", "the galleries choose among the first so many", COUNT, shown=2000)
    add(parser, "--output", "FILE", "the page", PATH, shown="DIR/report.html")


def import_(parser: Parser) -> None:
    add(parser, "--network", "NAME", "the network, as in mobilenet_v3_large", required=True)
    add(parser, "--weights", "FILE", "a safetensors file, or PyTorch's with the extra `torch`", PATH, required=True)
    workdir(parser, "new: it becomes that of a static run", required=True)
    meaning = "where the weights were trained, if nothing else tells"
    shown = "as the names of the arrays tell, or timm's config.json beside the file"
    add(parser, "--origin", "NAME", meaning, choices=ORIGINS, shown=shown)


def sweep(parser: Parser) -> None:
    add(parser, "--sweep", "FILE", "the sweep, as configs/sweeps/bases_width.py", PATH, required=True)
    workdir(parser, "new, or of this sweep, which then goes on where it stopped", PATH, required=True)
    add(parser, "--cluster", "NAME", "where the runs run", choices=CLUSTERS, default="local")
    add(parser, "--jobs", "N", "runs at once", COUNT, shown="as many as fit, or as Slurm starts")


VERBS = {
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
