"""The extracted specialist: one plain network, mixed for one image or one class, as an ordinary checkpoint.

It is a run of a static network, which evaluate, predict, export and `config.init_from` take like any other.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from basisnet_jax import basis
from basisnet_jax.classifier import Classifier, Static
from basisnet_jax.data import files, folder
from basisnet_jax.data.pipeline import Dataset
from basisnet_jax.errors import UserError
from basisnet_jax.export.output import output_folder
from basisnet_jax.preprocess import Preprocess
from basisnet_jax.workdir import checkpoint, data_record, runs


def extract(workdir: str, output: str, *, which: str | None = None, **source: str) -> str:
    """Makes `output` a run of the specialist that an image, or a class's mean coefficients, synthesizes.

    Args:
      output: does not exist yet or is empty.
      source: `image`, a file, or `class`, a name in `classes.json` or a label, for the mean over its validation images.

    Returns:
      What was made, in a line.
    """
    run = runs.load(workdir, which)
    config = run.config.copy_and_resolve_references()
    if config.model != "basisnet":
        raise UserError(f"{workdir} holds a {config.model!r} model, which has no specialist to extract")
    names = runs.load_classes(workdir, config.num_classes)
    if "image" in source:
        images = of_image(run.preprocess, source["image"])
    else:
        data = data_record.opened(workdir)
        images = of_class(data, config.validation_split, names, source["class"])
    plain = basis.synthesize(run.model.specialist, mean_coefficients(run, images))
    if not isinstance(plain, Classifier):  # a network of one's own
        plain = Static(plain, nnx.Rngs(0))
    config.model = "static"
    params, batch_stats = (nnx.to_pure_dict(nnx.state(plain, kind)) for kind in (nnx.Param, nnx.BatchStat))
    with output_folder(output) as folder:
        data_record.copy(workdir, folder)
        runs.claim(config, str(folder))
        runs.write_classes(str(folder), names)
        averaged = {"ema_params": params, "ema_batch_stats": batch_stats}
        with checkpoint.manager(str(folder), keep=1) as checkpoints:
            checkpoint.save(checkpoints, run.step, {"params": params, "batch_stats": batch_stats, **averaged})
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return f"{config.network.name}: {size:,} parameters, mixed for {len(images)} images, now in {output}"


def of_image(seen: Preprocess, path: str) -> np.ndarray:
    [(_, image)] = files.read(seen, [path])
    if isinstance(image, Exception):
        raise UserError(folder.unreadable(path, image))
    return image[None]


def of_class(data: Dataset, split: str, names: list[str], name: str) -> np.ndarray:
    """The images [n, H, W, C] of a class, given by name or label, in a split."""
    if name not in names and not (name.isdecimal() and int(name) < len(names)):
        raise UserError(f"--class={name!r} is no name in classes.json and no label below {len(names)}")
    label = names.index(name) if name in names else int(name)
    found = [batch["image"][(batch["label"] == label) & (batch["mask"] > 0)] for batch in data.eval_batches(split)]
    images = np.concatenate(found)
    if not len(images):
        raise UserError(f"--class={name!r} has no image in the split {split}")
    return images


def mean_coefficients(run: runs.Run, images: np.ndarray) -> jax.Array:
    """[K, N], the mean over images [n, H, W, C]."""
    graph, state = nnx.split(run.model)

    @jax.jit
    def coefficients(images):
        return nnx.merge(graph, state, copy=True).preview_stage(run.preprocess.normalize(images))[1]

    size = run.config.eval_batch_size
    found = [coefficients(images[i : i + size]) for i in range(0, len(images), size)]
    return jnp.mean(jnp.concatenate(found), axis=0)
