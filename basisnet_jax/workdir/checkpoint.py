"""Orbax checkpoints of a training state: asynchronous, the newest k and the best kept.

The data position is the step itself: the batch of step t is a function of (config.seed, t) alone, so a state restored
at step t goes on with the batch it would have seen (`train_batches(first_step=t)` of `data.pipeline`).
"""

import hashlib
import json
import os
import pathlib
from functools import partial

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from basisnet_jax import paths
from basisnet_jax.errors import UserError
from basisnet_jax.workdir import files

CHANGING = "_CHECKPOINT_METADATA", "checksums.json"  # Orbax's own note on a checkpoint, and the list of the others


def manager(workdir: str, keep: int | None = None) -> ocp.CheckpointManager:
    """The checkpoints of a workdir. With `keep` it writes, and keeps that many newest and the best; without it reads.

    The best is the one with the highest validation top-1 among those saved with metrics.
    """

    def top1(metrics):
        return metrics["top1"]

    if keep is None:
        options = ocp.CheckpointManagerOptions(best_fn=top1, read_only=True, create=False)
    else:
        policy = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(keep),
                preservation_policy.BestN(get_metric_fn=top1, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        # A killed run leaves its unfinished save behind under a temporary name; the next run removes it.
        options = ocp.CheckpointManagerOptions(
            best_fn=top1,
            preservation_policy=policy,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=partial(write_checksums, workdir)),
        )
    folder = files.at(directory(workdir))  # of a bucket it connects to the store
    handler = ocp.PyTreeCheckpointHandler()
    try:
        return ocp.CheckpointManager(directory(workdir), item_handlers=handler, options=options)
    except json.JSONDecodeError:  # Orbax reads all steps' metrics here, and does not say which are damaged
        for path in sorted(folder.glob("*/metrics/metrics")):
            try:
                json.loads(path.read_text())
            except ValueError as error:
                step = path.parents[1]
                raise UserError(f"checkpoint {step} is damaged: {path} ({error}); remove {step} to go on") from None
        raise


def directory(workdir: str) -> str:
    return os.path.join(paths.absolute(workdir), "checkpoints")


def newest(workdir: str) -> int | None:
    """The newest step that is saved whole, without opening it; None where there is none."""
    return max(steps(workdir), default=None)


def steps(workdir: str, finished: bool = True) -> list[int]:
    """The steps that are saved whole, without opening them, or those that are about to be."""
    folder = files.at(directory(workdir))
    found = [child for child in folder.iterdir() if child.name.isdigit()] if folder.is_dir() else []
    if files.is_remote(folder):  # where a file says that a checkpoint is whole, and not its name
        found = [child for child in found if _is_finished(child) == finished]
    return [int(child.name) for child in found]


def _is_finished(folder) -> bool:
    """Of a checkpoint in a bucket."""
    try:
        return ocp.utils.is_checkpoint_finalized(folder)
    except ValueError:  # the run that writes there has removed it
        return False


def save(checkpoints: ocp.CheckpointManager, step: int, state, metrics: dict | None = None) -> None:
    """Starts to save; the arrays are copied before this returns, so the state may be donated to the next step."""
    checkpoints.save(step, args=ocp.args.PyTreeSave(state), metrics=metrics)


def restore(checkpoints: ocp.CheckpointManager, step: int, like):
    """The state saved at `step`, with the tree, shapes, dtypes and shardings of `like` (arrays or their shapes).

    `like` may have only some of the saved state's fields; the others are not read.

    Raises:
      UserError: there is no such checkpoint, it is damaged, or it is of another model.
    """
    if step not in checkpoints.all_steps():
        steps = ", ".join(map(str, sorted(checkpoints.all_steps()))) or "none"
        raise UserError(f"no checkpoint of step {step} in {checkpoints.directory}; there are: {steps}")
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
        # Orbax would leave out what only the checkpoint has, and return the bare shape of what only `like` has.
        saved, wanted = (ocp.tree.to_flat_dict(tree) for tree in (checkpoints.item_metadata(step).tree, abstract))
        fields = {path[0] for path in wanted}
        if differing := wanted.keys() ^ {path for path in saved if path[0] in fields}:
            first = min(differing)
            raise ValueError(f"{'/'.join(first)} is in the {'checkpoint' if first in saved else 'model'} only")
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        args = ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=True)
        return checkpoints.restore(step, args=args)
    except Exception as error:  # tensorstore and Orbax raise half a dozen types for a damaged file
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"checkpoint {checkpoints.directory}/{step} cannot be read: it is damaged or of another model "
            f"({reason[:200]}); remove that folder to go on from the one before it"
        ) from error


def set_damaged_aside(workdir: str) -> None:
    """Moves damaged checkpoints that are newer than the newest whole one to `workdir`/damaged, each with a warning.

    To be called before `manager`, by a run that is alone in its workdir.

    Raises:
      UserError: there are checkpoints, but none of them is whole.
    """
    if jax.process_index() == 0:
        folder = files.at(directory(workdir))
        newest_first = sorted(steps(workdir), reverse=True)
        damaged = {}
        for step in newest_first:
            if not (reason := damage(folder / str(step))):
                break
            damaged[step] = reason
        if damaged and len(damaged) == len(newest_first):
            reason = damaged[newest_first[0]]
            raise UserError(f"all checkpoints in {folder} are damaged ({reason}): nothing to go on from")
        for step, reason in damaged.items():
            logging.warning("checkpoint %s/%d is damaged (%s): going back to the one before it", folder, step, reason)
            aside = folder.parent / "damaged"
            files.make_folder(aside)
            files.move(folder / str(step), aside / f"{step}-{len(list(aside.glob(f'{step}-*')))}")
    multihost_utils.sync_global_devices("damaged checkpoints are set aside")


def write_checksums(workdir: str) -> None:
    """Lists the SHA-256 of each file of the checkpoint that is about to be finished, in `checksums.json`.

    Orbax calls this when all is written and the folder still has a temporary name, or in a bucket no file that says
    that it is whole; the list comes into place with either. Of a bucket, what was written is read once more.
    """
    if jax.process_index() == 0:
        folder = files.at(directory(workdir))
        if files.is_remote(folder):
            unfinished = folder / str(max(steps(workdir, finished=False)))  # an older one is half deleted
        else:
            [unfinished] = folder.glob("*.orbax-checkpoint-tmp*")
        (unfinished / "checksums.json").write_text(json.dumps(files.checksums(unfinished, CHANGING), indent=1))


def fingerprint(workdir: str, step: int) -> str:
    """What tells the checkpoint of a step from any other: the SHA-256 of its `checksums.json`."""
    folder = files.at(directory(workdir)) / str(step)
    path = folder / "checksums.json"
    listed = path.read_text() if path.exists() else json.dumps(files.checksums(folder, CHANGING), indent=1)
    return hashlib.sha256(listed.encode()).hexdigest()


def damage(folder: pathlib.Path) -> str | None:
    """What is wrong with the files of a checkpoint, or None. One without checksums is taken as it is."""
    try:
        expected = json.loads((folder / "checksums.json").read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return "checksums.json cannot be read"
    name = files.damaged(folder, expected)
    return name and f"{name} is not what was written"


def pick(checkpoints: ocp.CheckpointManager, which: str | int | None = None) -> int:
    """The step meant by "best", a number, or None for the newest; its files are whole."""
    newest = checkpoints.latest_step()
    if newest is None:
        raise UserError(f"no checkpoint in {checkpoints.directory}: train first")
    if which in (None, "best"):
        step = newest if which is None else checkpoints.best_step() or newest
    elif str(which).isdigit():
        step = int(which)
    else:
        raise UserError(f'--checkpoint={which!r}, expected a step or "best"')
    if reason := damage(files.at(checkpoints.directory) / str(step)):
        raise UserError(f"checkpoint {checkpoints.directory}/{step} is damaged ({reason})")
    return step
