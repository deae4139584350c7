"""`data.json` of a run: what its examples are, and whether they are still the same.

{"dataset", "fingerprint", "splits": {name: count}, "classes": [...]}, and for a folder of images
"files": {name: [size, time in ns, digest]}. Runs of earlier commits have none, and nothing is said of their data.
"""

import json
import os
import sys

import jax
import ml_collections

from basisnet_jax.data import folder, pipeline
from basisnet_jax.data.source import Source
from basisnet_jax.errors import UserError
from basisnet_jax.workdir import files, runs


def opened(config: ml_collections.ConfigDict, workdir: str) -> pipeline.Dataset:
    """The data set of the run in `workdir`, to measure the run on. Where files have changed, a line on stderr says so.

    Raises:
      UserError: the classes are not those of the run; or as `pipeline.open`.
    """
    source = Source.find(config)
    if recorded := read(workdir):
        check_classes(source, recorded, workdir)
        told = changed(source, recorded, workdir)
        if told and jax.process_index() == 0:
            print(f"basisnet: {told}", file=sys.stderr)
    return pipeline.open(config, source)


def check(source: Source, workdir: str, changed_data: bool) -> bool:
    """Refuses to train on with other classes, and with other examples unless `changed_data`; whether to record them.

    A workdir of another data set is left for `runs.check` to refuse.
    """
    if not runs.begun(workdir):
        return True
    recorded = read(workdir)
    if recorded is None or runs.load_config(workdir).dataset != source.name:
        return False
    check_classes(source, recorded, workdir)
    told = changed(source, recorded, workdir)
    if told and not changed_data:
        raise UserError(f"{told}; use another --workdir, or go on with --changed_data")
    return told is not None


def read(workdir: str) -> dict | None:
    """What was recorded, or None."""
    path = os.path.join(workdir, "data.json")
    try:
        with open(path) as file:
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
            os.makedirs(workdir, exist_ok=True)
            files.write_json(os.path.join(workdir, "data.json"), source.record(), indent=None)


def check_classes(source: Source, recorded: dict, workdir: str) -> None:
    ours, theirs = source.classes, recorded["classes"]
    if ours == theirs:
        return
    if len(ours) != len(theirs):
        given, expected = f"{len(ours)} classes", f"{len(theirs)}"
    else:
        label = next(i for i in range(len(ours)) if ours[i] != theirs[i])
        given, expected = f"class {ours[label]!r} as label {label}", repr(theirs[label])
    raise UserError(f"{source.name} has {given}, expected {expected}, with which the run in {workdir} began")


def changed(source: Source, recorded: dict, workdir: str) -> str | None:
    """How the examples differ from those that were recorded, in words; None: they do not."""
    if source.folder and "files" in recorded:
        kinds = folder.changes(source.folder, recorded["files"])._asdict()
        parts = [f"{len(names)} {kind} ({names[0]})" for kind, names in kinds.items() if names]
        return f"{source.name} has changed since the run in {workdir} began: {', '.join(parts)}" if parts else None
    if source.fingerprint == recorded["fingerprint"]:
        return None
    return f"the run in {workdir} began with {recorded['fingerprint']}, and the data are now {source.fingerprint}"
