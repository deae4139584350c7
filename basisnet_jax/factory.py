"""Models by name, and models read back: `create_model`, `list_models`, `load`."""

import fnmatch
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import ml_collections

from basisnet_jax import models, paths
from basisnet_jax.classifier import Classifier
from basisnet_jax.configs import (
    default,
    imagenet_basisnet_mv3,
    imagenet_condconv_efficientnet_b0,
    imagenet_condconv_mv2,
    imagenet_dy_mv2,
    imagenet_dy_mv3,
    imagenet_static,
    ranges,
)
from basisnet_jax.errors import UserError
from basisnet_jax.networks import NETWORKS

if TYPE_CHECKING:
    from basisnet_jax.export import Exported


def _basisnet(network: str) -> Callable[[str], ml_collections.ConfigDict]:
    def config(arg):
        config = imagenet_basisnet_mv3.get_config(arg)
        config.network.name = network
        config.image_size = imagenet_static.IMAGE_SIZES.get(network, config.image_size)
        return config

    return config


def _static(network: str) -> Callable[[str], ml_collections.ConfigDict]:
    return lambda arg: imagenet_static.get_config(",".join(filter(None, [f"network={network}", arg])))


CONFIGS = {  # the config whose model a name stands for, by its arguments
    **{network: _static(network) for network in NETWORKS},
    **{f"basisnet_{network}": _basisnet(network) for network in NETWORKS},
    "condconv_mobilenet_v2": imagenet_condconv_mv2.get_config,
    "condconv_efficientnet_b0": imagenet_condconv_efficientnet_b0.get_config,
    "dy_mobilenet_v2": imagenet_dy_mv2.get_config,
    "dy_mobilenet_v3_large": imagenet_dy_mv3.get_config,
}


# The fields of a config that say what a model is; the others are of its data and training.
MODEL_FIELDS = ("network", "preview", "basis", "coefficients", "routing", "mean", "stddev", "resize", "eval_crop")
MODEL_FIELDS += ("init_noise", "batch_norm_groups", "remat_kernels")


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` takes, those that match a shell pattern such as "basisnet_*".

    Example:
      >>> list_models("basisnet_*v3*")
      ['basisnet_mobilenet_v3_large', 'basisnet_mobilenet_v3_small']
    """
    return sorted(fnmatch.filter(CONFIGS, pattern))


def create_model(
    name: str,
    num_classes: int = 1000,
    *,
    num_bases: int | None = None,
    width: float = 1.0,
    channels: int = 3,
    image_size: int | None = None,
    dtype: str = "float32",
    seed: int = 0,
    **fields,
) -> Classifier:
    """A model with new weights, the same that the ImageNet config of its kind makes.

    Args:
      name: one of `list_models()`: a network, or what is made of it, such as "basisnet_mobilenet_v3_large".
      num_classes: of the logits.
      num_bases: kernels of each layer with bases; None: as many as the config has.
      width: multiplies the channels of the network, not of the preview.
      channels: of the images, 1 or 3.
      image_size: side of the images in pixels; None: the network's own. The preview's changes in proportion.
      dtype: of the computation, "float32" or "bfloat16".
      seed: of the weights.
      **fields: other fields of a config, "." as "__": `preview__width=0.5`, `coefficients__temperature=2.0`,
        `mean=(0.5,)`.

    Raises:
      ValueError: the name or a field is unknown, or a value is out of range.

    Example:
      >>> small = dict(image_size=32, network__num_stages=1, preview__num_stages=1)
      >>> model = create_model("basisnet_mobilenet_v3_small", num_classes=5, num_bases=4, **small)
      >>> model.preprocess.shape
      (32, 32, 3)
    """
    if name not in CONFIGS:
        known = ", ".join(list_models())
        raise ValueError(f"model {name!r} is unknown, expected one of {known}")
    bases = [] if num_bases is None else [f"bases={num_bases}"]
    config = CONFIGS[name](",".join([*bases, f"width={width}", f"seed={seed}"]))
    config.num_classes, config.channels, config.dtype = num_classes, channels, dtype
    config.eval_crop = 1.0  # `fit` takes images as they are, and `predict` should see no less of them
    if channels == 1:  # ImageNet's, of its three channels together
        config.mean, config.stddev = ((sum(of) / len(of),) for of in (config.mean, config.stddev))
    if image_size is not None:
        default.resize(config, image_size)
    given = {field.replace("__", "."): value for field, value in fields.items()}
    for section in ranges.SECTIONS:
        if ranges.is_own(given.get(f"{section}.name")):
            raise ValueError(f"{section}__name={given[f'{section}.name']!r}: with a network of your own, call BasisNet")
    for field in given:
        check_field(config, field)
    try:
        config.update_from_flattened_dict(given)
        ranges.check(config, batch=False)
        models.check_preview(config)
        if not num_classes:
            raise UserError("num_classes=0, expected a whole number above 0")
        return models.create(config)
    except (UserError, KeyError, TypeError) as error:
        raise ValueError(f"create_model({name!r}): {error}") from error


def check_field(config: ml_collections.ConfigDict, field: str) -> None:
    """Raises ValueError unless a dotted field exists and belongs to the model, not to its training."""
    holder = config
    for name in field.split("."):
        if not isinstance(holder, ml_collections.ConfigDict) or name not in holder:
            known = ", ".join(holder) if isinstance(holder, ml_collections.ConfigDict) else "none inside it"
            raise ValueError(f"create_model has no field {field.replace('.', '__')!r}: {name!r} is not one of {known}")
        holder = holder[name]
    if field.split(".")[0] not in MODEL_FIELDS:
        raise ValueError(
            f"{field.replace('.', '__')} is not a field of a model, expected one of {', '.join(MODEL_FIELDS)}"
        )


def load(place: str | os.PathLike, checkpoint: str | int | None = None) -> "Classifier | Exported":
    """A model read back, in evaluation mode; `.predict(images)` takes raw uint8 images.

    Args:
      place: the workdir of a run, trained or imported, which may be gs://BUCKET/FOLDER; or a folder that `basisnet
        export` wrote. An export to safetensors is the same kind of model as a run's; other formats are run by their own
        runtime, and what is returned only calls them.
      checkpoint: of a workdir: a step, "best" (on the validation split), or None for the newest.

    Raises:
      basisnet_jax.errors.UserError: there is nothing of this kind, or it is damaged.

    Example:
      >>> model = load("runs/digits", checkpoint="best")  # doctest: +SKIP
      >>> model.predict(images).labels  # doctest: +SKIP
    """
    from basisnet_jax.workdir import files

    try:
        place = paths.of_run(os.fspath(place))
    except ValueError as error:
        raise UserError(f"{error}: expected a folder on this machine or gs://BUCKET/FOLDER") from None
    if not files.is_remote(place) and os.path.exists(os.path.join(place, "model.json")):
        if checkpoint is not None:
            raise UserError(f"checkpoint={checkpoint!r} given, but {place} is an export, which holds one only")
        from basisnet_jax import export

        return export.load_model(place)
    if not files.exists(os.path.join(place, "config.json")):
        raise UserError(f"{place} holds neither config.json nor model.json: expected a workdir or an export")
    from basisnet_jax.workdir import runs

    run = runs.load(place, checkpoint if checkpoint is None else str(checkpoint))
    run.model.names = tuple(runs.load_classes(place, run.config.num_classes))
    if run.config.model == "basisnet":
        run.model.rule = runs.rule(place, run.step, None)
    run.model.eval()
    return run.model
