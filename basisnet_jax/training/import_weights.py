"""Import of PyTorch weights, under the names of timm, geffnet, efficientnet_pytorch or torchvision.

The two families of published weights differ in ways that no array tells: those trained in TensorFlow (timm's with `tf_`
in their name, all of efficientnet_pytorch's) pad as TensorFlow does and have 1e-3 in batch norm; those trained in
PyTorch pad evenly and have 1e-5. PyTorch's batch-norm momentum is the share of the new batch: 0.1 there is
`momentum=0.9` here.
"""

import json
import os

import jax
import numpy as np
from absl import logging
from flax import nnx

from basisnet_jax import models
from basisnet_jax.configs import default
from basisnet_jax.data import imagenet
from basisnet_jax.errors import UserError
from basisnet_jax.training import weights_check, weights_files, weights_names
from basisnet_jax.training.weights_names import TIMM, TORCHVISION_EFFICIENTNET, Naming
from basisnet_jax.workdir import checkpoint, files, runs

ORIGINS = {
    "tensorflow": {"padding": "same", "epsilon": 1e-3},
    "pytorch": {"padding": "symmetric", "epsilon": 1e-5},
}
IMAGE_SIZES = {"efficientnet_b1": 240, "efficientnet_b2": 260}  # the others: 224
TENSORFLOW_NORMALIZATION = {  # mean and standard deviation of images in 0..1 where TensorFlow's are not ImageNet's
    "mobilenet_v2": (0.5, 0.5),
    "mobilenet_v3_large": (0.5, 0.5),
    "mobilenet_v3_small": (0.5, 0.5),
    "efficientnet_lite0": (127 / 255, 128 / 255),
}
TIMM_ARCHITECTURES = {  # which begin so, after a `tf_`, where it is not the network's own name
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
}


def import_weights(network: str, path: str, workdir: str, origin: str | None = None) -> None:
    """Makes `workdir` a run of the static `network` with the weights of `path`, as if it had been trained here.

    Args:
      network: a name in `networks.NETWORKS`, at width 1.
      path: a safetensors file, or a PyTorch file (extra `torch`), as `weights_files.read` takes it.
      workdir: must not hold a run yet.
      origin: "tensorflow" or "pytorch", where the weights were trained. None: as the names of the arrays or timm's
        config.json beside the file tell.

    Raises:
      UserError: the file cannot be read, its arrays are not those of the network, or nothing tells the origin.
    """
    if origin not in (None, *ORIGINS):
        raise UserError(f"--origin={origin!r}, expected one of {', '.join(ORIGINS)}")
    if files.exists(os.path.join(workdir, "config.json")):
        raise UserError(f"workdir {workdir} already holds a run; use another --workdir")
    runs.check_writable(workdir)
    arrays = weights_files.read(path)
    names, prefix = weights_names.find(arrays)
    state_dict = weights_names.network_only(arrays, prefix)
    architecture, fields = timm_config(path, network) if names is TIMM else ("", {})
    configs = {name: static_config(network, state_dict, name, fields) for name in ORIGINS}
    candidates = {name: models.create_abstract(config) for name, config in configs.items()}
    params, batch_stats = convert(state_dict, candidates["pytorch"])
    known, why = known_origin(names, architecture)
    if origin and known and origin != known:
        raise UserError(f"--origin={origin}, but {why}: expected --origin={known}")
    distances = {name: weights_check.distance(of, params, batch_stats) for name, of in candidates.items()}
    nearest, clearly = weights_check.nearest(distances)
    if not (origin or known):
        hint = f"; its batch statistics fit {nearest} ({weights_check.text(distances)})" if clearly else ""
        raise UserError(
            f"{path} does not tell its origin, TensorFlow or PyTorch: give --origin=tensorflow if timm's name of "
            f"these weights begins with tf_, otherwise --origin=pytorch{hint}"
        )
    origin, why = known or origin, why or "--origin says so"
    config = configs[origin]
    classes = imagenet.class_names() if config.num_classes == 1000 else None
    logits = weights_check.logits(candidates[origin], params, batch_stats)
    if not np.isfinite(logits).all():
        raise UserError(f"with the weights of {path}, the logits of a photograph are not finite")

    runs.claim(config, workdir)
    if classes:
        runs.write_classes(workdir, classes)
    state = {"params": params, "batch_stats": batch_stats, "ema_params": params, "ema_batch_stats": batch_stats}
    with checkpoint.manager(workdir, keep=1) as checkpoints:
        checkpoint.save(checkpoints, 0, state)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{network}: {count:,} parameters, {config.num_classes} classes, now in {workdir}")
    where = f"; they begin with {prefix!r}; the file has {len(arrays)}" if prefix else ""
    print(f"arrays: {len(state_dict)} with {names.code}'s names{where}")
    values = {field: config.network[field] for field in ("padding", "epsilon")}
    values |= {field: config[field] for field in ("mean", "stddev", "image_size", "eval_crop", "resize")}
    print(f"origin: {origin}, {why}: {' '.join(f'{field}={value}' for field, value in values.items())}")
    palace = f", prediction for a photograph of a palace: {classes[logits[0].argmax()]!r}" if classes else ""
    print(f"check: logits are finite{palace}; distance of batch statistics: {weights_check.text(distances)}")
    if clearly and nearest != origin:
        logging.warning("the batch statistics fit %s better; check whether the origin %s is right", nearest, origin)


def known_origin(names: Naming, architecture: str) -> tuple[str | None, str]:
    """The origin that names or timm's architecture tell, or None, and what told it."""
    if names.origin:
        return names.origin, f"its arrays have {names.code}'s names"
    if architecture:
        origin = "tensorflow" if architecture.startswith("tf_") else "pytorch"
        return origin, f"config.json beside it says {architecture!r}"
    return None, ""


def timm_config(path: str, network: str) -> tuple[str, dict]:
    """The architecture in timm's config.json beside a file, "" if none is of `network`, and fields of our config."""
    beside = os.path.join(os.path.dirname(path), "config.json")
    try:
        with open(beside) as file:
            found = json.load(file)
        architecture = found["architecture"]
        begins = TIMM_ARCHITECTURES.get(network, network)
        if not architecture.removeprefix("tf_").startswith(begins):
            return "", {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):  # of another program
        return "", {}
    try:
        given = found.get("pretrained_cfg", found)
        pairs = (("mean", "mean"), ("stddev", "std"))
        fields = {field: tuple(map(float, given[name])) for field, name in pairs if name in given}
        if "input_size" in given:
            fields["image_size"] = int(given["input_size"][1])
        if "crop_pct" in given:
            fields["eval_crop"] = float(given["crop_pct"])
        if given.get("interpolation") in ("bilinear", "bicubic"):
            fields["resize"] = given["interpolation"]
        lengths = {len(numbers) for numbers in (fields.get("mean", (0,)), fields.get("stddev", (1,)))}
        if not (lengths <= {1, 3} and min(fields.get("stddev", (1,))) > 0):
            raise ValueError
        if not (0 < fields.get("eval_crop", 1) <= 1 and fields.get("image_size", 1) > 0):
            raise ValueError
    except (TypeError, ValueError, IndexError):
        names = "mean, std, input_size or crop_pct"
        raise UserError(f"{beside} has an invalid value of {names}; correct or remove it") from None
    return architecture, fields


def static_config(network: str, state_dict: dict[str, np.ndarray], origin: str, fields: dict | None = None):
    """The config of the plain network, with the classes and channels of the weights, and `fields` where given.

    It is evaluated as published ImageNet weights are: at the size of its paper, of the central 7/8, resized bicubically
    (torchvision's MobileNets: bilinearly).
    """
    names, _ = weights_names.find(state_dict)
    config = default.get_config()
    config.model = "static"
    config.dataset = "imagenet2012"
    config.test_split = config.validation_split = "validation"
    config.network.name = network
    config.network.update(ORIGINS[origin])
    config.network.epsilon = names.epsilon or config.network.epsilon
    config.image_size = IMAGE_SIZES.get(network, 224)
    bilinear = names.code == "torchvision" and names is not TORCHVISION_EFFICIENTNET
    config.resize = "bilinear" if bilinear else "bicubic"
    config.eval_crop = 0.875
    if origin == "tensorflow" and network in TENSORFLOW_NORMALIZATION:
        config.mean, config.stddev = ((number,) for number in TENSORFLOW_NORMALIZATION[network])
    config.update(fields or {})
    classifier, stem = (names.network[module] + ".weight" for module in ("classifier", "stem.conv"))
    if classifier not in state_dict:
        raise UserError(f"the weights have no {classifier!r}: a network without its classifier, expected the whole one")
    classes, filters = state_dict[classifier].shape, state_dict[stem].shape
    if len(classes) != 2 or len(filters) != 4 or not classes[0] or filters[1] not in (1, 3):
        shapes = f"{classifier!r} has the shape {classes} and {stem!r} {filters}"
        raise UserError(f"{shapes}, expected (classes, features) and (filters, 1 or 3, height, width)")
    config.num_classes, config.channels = classes[0], filters[1]
    if config.channels == 1:  # those of the three channels together
        config.mean, config.stddev = ((sum(of) / len(of),) for of in (config.mean, config.stddev))
    return config


def convert(state_dict: dict[str, np.ndarray], network: nnx.Module) -> tuple[dict, dict]:
    """Params and batch statistics of `network`, as nested dicts of arrays in its layout.

    A network that went through `basis.with_bases` and `baselines.routed` takes the experts of CondConv: one row each,
    [N, O * I * h * w].

    Raises:
      UserError: an array is missing, has another shape, is not of finite floats, or has no place in the network.
    """
    names, _ = weights_names.find(state_dict)
    unused = dict.fromkeys(name for name in state_dict if not name.endswith("num_batches_tracked"))
    missing, wrong = [], []

    def take(path, leaf):
        keys = models.plain_path(key.key for key in path)
        module = weights_names.of_module(names, network, keys[:-1])
        name = f"{module}.{weights_names.LEAVES[keys[-1]]}"
        if module is None or name not in state_dict:
            missing.append("/".join(map(str, keys)) if module is None else name)
            return None
        unused.pop(name, None)
        array = placed(state_dict[name], leaf.shape)
        if array is None:
            wrong.append(f"{name!r} has the shape {state_dict[name].shape}, expected {theirs(leaf.shape)}")
        elif not jax.numpy.issubdtype(array.dtype, np.floating):
            wrong.append(f"{name!r} has the type {array.dtype}, expected floating-point numbers")
        else:
            with np.errstate(over="ignore"):  # told below
                array = array.astype(leaf.dtype)
            if not np.isfinite(array).all() or (keys[-1] == "var" and array.min() < 0):
                wrong.append(f"{name!r} has numbers that are not finite, or variances below 0")
        return array

    trees = (nnx.to_pure_dict(nnx.state(network, kind)) for kind in (nnx.Param, nnx.BatchStat))
    params, batch_stats = (jax.tree.map_with_path(take, tree) for tree in trees)
    said = [f"they lack {weights_names.some(missing)}"] if missing else []
    said += [f"the network has no place for {weights_names.some(unused)}"] if unused else []
    said += wrong[:3]
    if said:
        raise UserError(f"the weights, with {names.code}'s names, do not fit the network: {'; '.join(said)}")
    return params, batch_stats


def placed(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """PyTorch's array in our layout; None: it has another shape."""
    if array.shape != theirs(shape):
        is_linear = shape[:-2] == (1, 1) and array.shape == shape[:1:-1]  # where we have a 1x1 convolution
        return array.T.reshape(shape) if is_linear else None
    if len(shape) == 5:
        N, h, w, I, O = shape
        return array.reshape(N, O, I, h, w).transpose(0, 3, 4, 2, 1)
    return array.transpose(2, 3, 1, 0) if len(shape) == 4 else array.T


def theirs(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an array of ours in PyTorch: of experts [N, h, w, I, O], of a kernel [h, w, I, O] or [I, O]."""
    if len(shape) == 5:
        return shape[0], int(np.prod(shape[1:]))
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
