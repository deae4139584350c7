"""Import of PyTorch weights under timm's, geffnet's or efficientnet_pytorch's names for the networks of this package.

The two families of published weights differ in ways that no array tells: those trained in TensorFlow (timm's with `tf_`
in the file's name, all of efficientnet_pytorch's) pad as TensorFlow does and have 1e-3 in batch norm; those trained in
PyTorch pad evenly and have 1e-5. PyTorch's batch-norm momentum is the share of the new batch: 0.1 there is
`momentum=0.9` here.
"""

import dataclasses
import os

import jax
import numpy as np
from flax import nnx

from basisnet_jax import models
from basisnet_jax.configs import default
from basisnet_jax.data import imagenet
from basisnet_jax.errors import UserError
from basisnet_jax.workdir import checkpoint, runs

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


def import_weights(network: str, path: str, workdir: str, origin: str | None = None) -> None:
    """Makes `workdir` a run of the static `network` with the weights of `path`, as if it had been trained here.

    Args:
      network: a name in `networks.NETWORKS`, at width 1.
      path: a `.safetensors` file, or a PyTorch file (extra `torch`) holding a state dict.
      workdir: must not hold a run yet.
      origin: "tensorflow" or "pytorch", where the weights were trained; None: by the names of file and arrays.
    """
    if origin not in (None, *ORIGINS):
        raise UserError(f"--origin={origin!r}, expected one of {', '.join(ORIGINS)}")
    if os.path.exists(os.path.join(workdir, "config.json")):
        raise UserError(f"workdir {workdir} already holds a run; use another --workdir")
    state_dict = read(path)
    if origin is None:
        tensorflow = "tf_" in os.path.basename(path) or naming(state_dict) is EFFICIENTNET_PYTORCH
        origin = "tensorflow" if tensorflow else "pytorch"
        print(f"taking {path} as trained in {origin}, by the names of file and arrays; --origin says otherwise")
    config = static_config(network, state_dict, origin)
    params, batch_stats = convert(state_dict, models.create_abstract(config))
    runs.claim(config, workdir)
    if config.num_classes == 1000:
        runs.write_classes(workdir, imagenet.class_names())
    state = {"params": params, "batch_stats": batch_stats, "ema_params": params, "ema_batch_stats": batch_stats}
    with checkpoint.manager(workdir, keep=1) as checkpoints:
        checkpoint.save(checkpoints, 0, state)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{network}: {count:,} parameters, {config.num_classes} classes, now in {workdir}")


def static_config(network: str, state_dict: dict[str, np.ndarray], origin: str):
    """The config of the plain network, with the classes and channels of the weights.

    It is evaluated as published ImageNet weights are: at the size of its paper, of the central 7/8 resized bicubically.
    """
    config = default.get_config()
    config.model = "static"
    config.dataset = "imagenet2012"
    config.test_split = config.validation_split = "validation"
    config.network.name = network
    config.network.update(ORIGINS[origin])
    config.image_size = IMAGE_SIZES.get(network, 224)
    config.resize = "bicubic"
    config.eval_crop = 0.875
    if origin == "tensorflow" and network in TENSORFLOW_NORMALIZATION:
        config.mean, config.stddev = ((number,) for number in TENSORFLOW_NORMALIZATION[network])
    names = naming(state_dict).network
    config.num_classes = len(state_dict[f"{names['classifier']}.weight"])
    config.channels = state_dict[f"{names['stem.conv']}.weight"].shape[1]
    return config


def read(path: str) -> dict[str, np.ndarray]:
    """The arrays of a file by name. PyTorch files are read with `weights_only=True`: no code in them can run."""
    if not os.path.isfile(path):
        raise UserError(f"weights file {path!r} does not exist")
    try:
        if path.endswith(".safetensors"):
            import safetensors.numpy

            return safetensors.numpy.load_file(path)
        try:
            import torch
        except ImportError:
            raise UserError("PyTorch files need the extra: pip install 'basisnet_jax[torch]'") from None
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # whatever the two libraries make of a file that is none of theirs
        raise UserError(f"{path} is no readable weights file: {str(error).splitlines()[0][:200]}") from error
    for wrapper in ("state_dict", "model"):
        loaded = loaded.get(wrapper, loaded)
    return {name.removeprefix("module."): tensor.numpy() for name, tensor in loaded.items()}


def convert(state_dict: dict[str, np.ndarray], network: nnx.Module) -> tuple[dict, dict]:
    """Params and batch statistics of `network`, as nested dicts of arrays in its layout.

    A network that went through `basis.with_bases` and `baselines.routed` takes the experts of CondConv: one row each,
    [N, O * I * h * w].

    Raises:
      UserError: an array is missing, has another shape, or has no place in the network.
    """
    names = naming(state_dict)
    unused = {name for name in state_dict if not name.endswith("num_batches_tracked")}

    def take(path, leaf):
        keys = models.plain_path(key.key for key in path)
        name = f"{torch_module(names, network, keys[:-1])}.{LEAVES[keys[-1]]}"
        if name not in state_dict:
            raise UserError(f"the weights have no {name!r}, which the network's {'/'.join(map(str, keys))} needs")
        unused.discard(name)
        array = state_dict[name].astype(leaf.dtype)
        if leaf.ndim == 5 and array.ndim == 2:  # [N, O * I * h * w] -> [N, h, w, I, O]
            N, h, w, I, O = leaf.shape
            array = array.reshape(N, O, I, h, w).transpose(0, 3, 4, 2, 1)
        elif array.ndim == 4:  # [O, I, h, w] -> [h, w, I, O]
            array = array.transpose(2, 3, 1, 0)
        elif array.ndim == 2:  # [O, I] -> [I, O]
            array = array.T
        if array.shape != leaf.shape:
            raise UserError(f"{name!r} gives {'/'.join(map(str, keys))} the shape {array.shape}, expected {leaf.shape}")
        return array

    trees = (nnx.to_pure_dict(nnx.state(network, kind)) for kind in (nnx.Param, nnx.BatchStat))
    params, batch_stats = (jax.tree.map_with_path(take, tree) for tree in trees)
    if unused:
        raise UserError(f"the network has no place for {len(unused)} arrays of the weights, such as {min(unused)!r}")
    return params, batch_stats


@dataclasses.dataclass(frozen=True)
class Naming:
    """What one family of PyTorch code calls our modules."""

    block: str  # by stage, index in the stage and position among all blocks
    network: dict[str, str]  # outside the blocks; a name may hold the number of stages
    expanding: dict[str, str]  # in a block that expands
    separable: dict[str, str]  # in a block that does not


TIMM = Naming(
    block="blocks.{stage}.{index}",
    network={
        "stem.conv": "conv_stem",
        "stem.norm": "bn1",
        "last.conv": "blocks.{stages}.0.conv",
        "last.norm": "blocks.{stages}.0.bn1",
        "head": "conv_head",
        "head.conv": "conv_head",
        "head.norm": "bn2",
        "classifier": "classifier",
    },
    expanding={
        "expand.conv": "conv_pw",
        "expand.norm": "bn1",
        "depthwise.conv": "conv_dw",
        "depthwise.norm": "bn2",
        "squeeze_excite.reduce": "se.conv_reduce",
        "squeeze_excite.expand": "se.conv_expand",
        "project.conv": "conv_pwl",
        "project.norm": "bn3",
        "router": "routing_fn",
    },
    separable={
        "depthwise.conv": "conv_dw",
        "depthwise.norm": "bn1",
        "squeeze_excite.reduce": "se.conv_reduce",
        "squeeze_excite.expand": "se.conv_expand",
        "project.conv": "conv_pw",
        "project.norm": "bn2",
    },
)
_BLOCK = {
    "expand.conv": "_expand_conv",
    "expand.norm": "_bn0",
    "depthwise.conv": "_depthwise_conv",
    "depthwise.norm": "_bn1",
    "squeeze_excite.reduce": "_se_reduce",
    "squeeze_excite.expand": "_se_expand",
    "project.conv": "_project_conv",
    "project.norm": "_bn2",
}
EFFICIENTNET_PYTORCH = Naming(
    block="_blocks.{position}",
    network={
        "stem.conv": "_conv_stem",
        "stem.norm": "_bn0",
        "head.conv": "_conv_head",
        "head.norm": "_bn1",
        "classifier": "_fc",
    },
    expanding=_BLOCK,
    separable=_BLOCK,
)
NAMINGS = (TIMM, EFFICIENTNET_PYTORCH)
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def naming(state_dict: dict[str, np.ndarray]) -> Naming:
    """The naming in which the weights have a stem and a classifier."""
    needed = [[f"{names.network[module]}.weight" for module in ("stem.conv", "classifier")] for names in NAMINGS]
    for names, arrays in zip(NAMINGS, needed, strict=True):
        if state_dict.keys() >= set(arrays):
            return names
    raise UserError(f"the weights have neither {' nor '.join(map(' and '.join, needed))}: of no network known here")


def torch_module(names: Naming, network: nnx.Module, keys: list) -> str:
    """The name of the module at a path such as ["stages", 1, 0, "depthwise", "norm"]."""
    network = models.unwrapped(network)
    if keys[0] == "stages":
        stage, index, *layer = keys[1:]
        position = sum(map(len, network.stages[:stage])) + index
        block = network.stages[stage][index]
        expands = models.unwrapped(block).expand is not None
        name = (names.expanding if expands else names.separable)[".".join(layer)]
        return f"{names.block.format(stage=stage, index=index, position=position)}.{name}"
    path = ".".join(keys)
    if path not in names.network:
        raise UserError(f"the weights are of another network: theirs never has what is {path!r} here")
    return names.network[path].format(stages=len(network.stages))
