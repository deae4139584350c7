"""`data.json` of a run: what its examples are, and whether they are still the same.

{"dataset", "fingerprint", "splits": {name: count}, "classes": [...]}, and for a folder of images
"files": {name: [size, time in ns, digest]}, "images": {split: {class: count}}, "ignored": {why: [names]},
"skipped": {name: why} and "damaged": {name: libjpeg's warning}. Runs of earlier commits have none: of a folder's
classes their `classes.json` tells what it can.
"""

import json
import os
import pathlib
import sys

import jax

from basisnet_jax.data import digests, imagenet, pipeline
from basisnet_jax.data.source import Source
from basisnet_jax.errors import UserError, one_line
from basisnet_jax.workdir import files, runs


def opened(workdir: str) -> pipeline.Dataset:
    """The data set of the run in `workdir`, to measure the run on. Where files have changed, a line on stderr says so.

    Raises:
      UserError: the classes are not those of the run; or as `pipeline.open`.
    """
    config = runs.load_config(workdir)
    source = Source.find(config)
    if recorded := check_classes(source, workdir):
        say(changed(source, recorded, workdir))
    return pipeline.open(config, source)


def check(source: Source, workdir: str, changed_data: bool) -> bool:
    """Refuses to train on with other classes, and with other examples unless `changed_data`; whether to record them.

    A workdir of another data set is left for `runs.check` to refuse.
    """
    if not runs.begun(workdir):
        return True
    if runs.load_config(workdir).dataset != source.name:
        return False
    recorded = check_classes(source, workdir)
    if recorded is None:  # of an earlier commit: what there is now is what later lives are compared with
        return True
    told = changed(source, recorded, workdir)
    if told and not changed_data:
        raise UserError(f"{told}; use another --workdir, or go on with --changed_data")
    return told is not None


def read(workdir: str) -> dict | None:
    """What was recorded, or None."""
    path = os.path.join(workdir, "data.json")
    try:
        with files.reading(path) as file:
            recorded = json.load(file)
        if not recorded.keys() >= {"dataset", "fingerprint", "classes"}:
            raise ValueError("a field is missing")
        return recorded
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def write(source: Source, workdir: str) -> None:
    """Makes `workdir`, and `data.json` in it."""
    if jax.process_index() == 0:
        with runs.told_when_unwritable(workdir):
            files.make_folder(workdir)
            files.write_json(os.path.join(workdir, "data.json"), source.record(), indent=None)


def copy(workdir: str, folder: pathlib.Path) -> None:
    """Makes the record, where there is one, that of the run in another folder too."""
    path = os.path.join(workdir, "data.json")
    if files.exists(path):
        with files.reading(path) as file:
            (folder / "data.json").write_text(file.read())


def check_classes(source: Source, workdir: str) -> dict | None:
    """Refuses data whose classes are not those of the run in `workdir`; what the run has recorded, or None.

    The names in `classes.json` are for display, and a user may edit them: they count only where nothing else is known.
    """
    recorded = read(workdir)
    ours = source.classes
    theirs = recorded["classes"] if recorded else displayed_classes(source, workdir)
    if ours == theirs:
        return recorded
    if len(ours) != len(theirs):
        given, expected = f"{len(ours)} classes", f"{len(theirs)}"
    else:
        label = next(i for i in range(len(ours)) if ours[i] != theirs[i])
        given, expected = f"class {ours[label]!r} as label {label}", repr(theirs[label])
    raise UserError(f"{source.name} has {given}, expected {expected}, with which the run in {workdir} began")


def displayed_classes(source: Source, workdir: str) -> list[str]:
    """For a run without a record: the names in its `classes.json` if one of them now has another label, else ours."""
    ours, number = source.classes, runs.load_config(workdir).num_classes
    if not source.folder or (number == len(ours) and not files.exists(os.path.join(workdir, "classes.json"))):
        return ours
    theirs, shown = runs.load_classes(workdir, number), imagenet.readable(ours)
    if number != len(ours) or any(name in shown and name != shown[i] for i, name in enumerate(theirs)):
        return theirs
    label = next((i for i in range(number) if shown[i] != theirs[i]), None)
    if label is not None:
        names = f"label {label} is {theirs[label]!r} in its classes.json and {ours[label]!r} in the data"
        say(f"{workdir} is of an earlier commit and has no record of its classes; {names}")
    return ours


def say(told: str | None) -> None:
    if told and jax.process_index() == 0:
        print(f"basisnet: {one_line(told)}", file=sys.stderr)


def changed(source: Source, recorded: dict, workdir: str) -> str | None:
    """How the examples differ from those that were recorded, in words; None: they do not."""
    if source.folder and "files" in recorded:
        kinds = digests.changes(source.folder.root, source.folder.stats, recorded["files"])._asdict()
        parts = [f"{len(names)} {kind} ({names[0]})" for kind, names in kinds.items() if names]
        return f"{source.name} has changed since the run in {workdir} began: {', '.join(parts)}" if parts else None
    if source.fingerprint == recorded["fingerprint"]:
        return None
    return f"the run in {workdir} began with {recorded['fingerprint']}, and the data are now {source.fingerprint}"
