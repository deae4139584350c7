"""Orbax checkpoints of a training state: asynchronous, the newest k and the best kept.

The data position is the step itself: the batch of step t is a function of (config.seed, t) alone, so a state restored
at step t goes on with the batch it would have seen (`data.pipeline.train_batches(config, first_step=t)`).
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

from basisnet_jax.errors import UserError


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
            async_options=ocp.AsyncOptions(post_finalization_callback=partial(write_checksums, directory(workdir))),
        )
    handler = ocp.PyTreeCheckpointHandler()
    try:
        return ocp.CheckpointManager(directory(workdir), item_handlers=handler, options=options)
    except json.JSONDecodeError:  # Orbax reads all steps' metrics here, and does not say which are damaged
        for path in sorted(pathlib.Path(directory(workdir)).glob("*/metrics/metrics")):
            try:
                json.loads(path.read_text())
            except ValueError as error:
                step = path.parents[1]
                raise UserError(f"checkpoint {step} is damaged: {path} ({error}); remove {step} to go on") from None
        raise


def directory(workdir: str) -> str:
    return os.path.join(os.path.abspath(workdir), "checkpoints")


def newest(workdir: str) -> int | None:
    """The newest step that is saved whole, without opening it; None where there is none."""
    path = pathlib.Path(directory(workdir))
    steps = [int(child.name) for child in path.iterdir() if child.name.isdigit()] if path.is_dir() else []
    return max(steps, default=None)


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


def restore_newest(checkpoints: ocp.CheckpointManager, like) -> tuple[int, object]:
    """The newest checkpoint that is whole, as (step, state); (0, `like`) where there is none at all.

    Damaged ones are named in a warning and moved aside, to "damaged" beside the checkpoints.

    Raises:
      UserError: there are checkpoints, but none of them is whole; or they are of another model.
    """
    steps = sorted(checkpoints.all_steps(), reverse=True)
    for step in steps:
        if reason := damage(checkpoints.directory / str(step)):
            logging.warning("checkpoint %s is damaged (%s); going back to the one before it", step, reason)
            continue
        for newer in steps[: steps.index(step)]:
            put_aside(checkpoints, newer)
        return step, restore(checkpoints, step, like)
    if steps:
        raise UserError(f"all checkpoints in {checkpoints.directory} are damaged: {', '.join(map(str, steps))}")
    return 0, like


def put_aside(checkpoints: ocp.CheckpointManager, step: int) -> None:
    """Moves a damaged checkpoint out of the way of the one that will be saved at its step again."""
    if jax.process_index() == 0:
        aside = pathlib.Path(checkpoints.directory).parent / "damaged"
        aside.mkdir(exist_ok=True)
        number = sum(1 for _ in aside.glob(f"{step}-*"))
        os.rename(checkpoints.directory / str(step), aside / f"{step}-{number}")
    multihost_utils.sync_global_devices("put aside")
    checkpoints.reload()


def write_checksums(folder: str) -> None:
    """Lists the SHA-256 of each file of the checkpoint that is about to get its final name, in `checksums.json`.

    Orbax calls this when all is written and the folder still has a temporary name; the list comes into place with it.
    """
    if jax.process_index() == 0:
        [unfinished] = pathlib.Path(folder).glob("*.orbax-checkpoint-tmp*")
        (unfinished / "checksums.json").write_text(json.dumps(checksums(unfinished), indent=1))


def checksums(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 by file, but for Orbax's own note on the checkpoint, which it still changes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("_CHECKPOINT_METADATA", "checksums.json")
    }


def damage(folder: pathlib.Path) -> str | None:
    """What is wrong with the files of a checkpoint, or None. One without checksums is taken as it is."""
    try:
        expected = json.loads((folder / "checksums.json").read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return "checksums.json cannot be read"
    found = checksums(folder)
    return next((f"{name} has changed" for name in expected if found.get(name) != expected[name]), None)


def pick(checkpoints: ocp.CheckpointManager, which: str | int | None = None) -> int:
    """The step meant by "best", a number, or None for the newest."""
    newest = checkpoints.latest_step()
    if newest is None:
        raise UserError(f"no checkpoint in {checkpoints.directory}: train first")
    if which is None:
        return newest
    if which == "best":
        return checkpoints.best_step() or newest
    try:
        return int(which)
    except ValueError:
        raise UserError(f'--checkpoint={which!r}, expected a step or "best"') from None
