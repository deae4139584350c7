"""Initial weights from another run, trained or imported: `config.init_from` and `config.preview_init_from`.

A plain network's weights fill a network with bases: each basis starts as a noisy copy of the one kernel. With noise 0
and coefficients that sum to one, the new network's final logits are those of the old one.
"""

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import tree as trees

from basisnet_jax import basis, models
from basisnet_jax.errors import UserError
from basisnet_jax.models import Functional
from basisnet_jax.workdir import runs


def initialized(config, functions: Functional) -> Functional:
    """The functional with the params and batch statistics of the runs that the config names, if it names any.

    Raises:
      UserError: a run cannot be read, or one of its arrays (except the classifier's) has no place of its shape here.
    """
    if config.init_from:
        functions = _filled(functions, config.init_from, (), config)
    if config.preview_init_from:
        functions = _filled(functions, config.preview_init_from, ("preview",), config)
    return functions


def _filled(functions: Functional, workdir: str, prefix: tuple[str, ...], config) -> Functional:
    run = runs.load(workdir)
    if differing := _differing(run.config, config, "preview" if prefix else "network"):
        logging.warning("init_from %s: its weights are used to %s", workdir, " ".join(differing))
    params, filled = _fill(functions.params, run.params, run, workdir, prefix, config)
    batch_stats, _ = _fill(functions.batch_stats, run.batch_stats, run, workdir, prefix, config)
    print(f"{filled} of {len(jax.tree.leaves(functions.params))} parameter arrays start as those in {workdir}")
    return functions._replace(params=params, batch_stats=batch_stats)


def _differing(theirs, ours, network: str) -> list[str]:
    """What changes the result of the same weights and is set otherwise there, as flags that would set it so here."""
    pairs = [(field, theirs[field], ours[field]) for field in ("mean", "stddev")]
    fields = ("padding", "epsilon")
    both = {*theirs.network} & {*ours[network]}
    pairs += [(f"{network}.{field}", theirs.network[field], ours[network][field]) for field in fields if field in both]
    return [f"--config.{name}={given}" for name, given, here in pairs if given != here]


def _fill(ours: dict, theirs: dict, run: runs.Run, workdir: str, prefix: tuple[str, ...], config) -> tuple[dict, int]:
    """`ours` with the arrays of `theirs`, the run's, in their places below `prefix`, and how many places these were."""
    target, source = trees.to_flat_dict(ours), trees.to_flat_dict(theirs)
    plain_source = {models.plain_path(name): name for name in source}
    places = {}  # path of ours: path of theirs
    for path in target:
        if path[: len(prefix)] == prefix:
            inner = path[len(prefix) :]
            plain = models.plain_path(inner)
            name = next((name for name in (inner, plain) if name in source), plain_source.get(plain))
            if name is not None:
                places[path] = name
    if unplaced := source.keys() - set(places.values()):
        raise UserError(f"init_from {workdir}: {'/'.join(min(unplaced))} of its network has no place in this one")
    filled = 0
    for i, (path, name) in enumerate(places.items()):
        given, shape = np.asarray(source[name]), target[path].shape
        if given.shape == shape:
            target[path] = given
        elif given.shape == shape[1:] and path[-1] == "kernel":
            key = jax.random.fold_in(jax.random.key(config.seed), i)
            target[path] = np.asarray(basis.copies(config.init_noise)(key, given, shape[0]), given.dtype)
        elif name[0] == "classifier" or given.shape == (*shape[:-1], run.config.num_classes):
            continue  # of other classes: starts anew
        else:
            there = f"{'/'.join(name)} has the shape {given.shape} there"
            raise UserError(f"init_from {workdir}: {there}, expected {shape}")
        filled += 1
    return trees.from_flat_dict(target, target=ours), filled
