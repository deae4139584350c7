"""Import of PyTorch weights under timm's and geffnet's names for the networks of this package.

The two families of published weights differ in ways that no file tells: those trained in TensorFlow (names with `tf_`)
pad as TensorFlow does and have 1e-3 in batch norm; those trained in PyTorch pad evenly and have 1e-5. PyTorch's
batch-norm momentum is the share of the new batch: 0.1 there is `momentum=0.9` here.
"""

import os

import jax
import numpy as np
from flax import nnx

from basisnet_jax import basisnet, checkpoint, train
from basisnet_jax.configs import default
from basisnet_jax.errors import UserError

ORIGINS = {
    "tensorflow": {"padding": "same", "epsilon": 1e-3},
    "pytorch": {"padding": "symmetric", "epsilon": 1e-5},
}


def import_weights(network: str, path: str, workdir: str, origin: str | None = None) -> None:
    """Makes `workdir` a run of the static `network` with the weights of `path`, as if it had been trained here.

    Args:
      network: a name in `networks.NETWORKS`, at width 1.
      path: a `.safetensors` file, or a PyTorch file (extra `torch`) holding a state dict.
      workdir: must not hold a run yet.
      origin: "tensorflow" or "pytorch", where the weights were trained; None: by "tf_" in the file's name.
    """
    if origin is None:
        origin = "tensorflow" if "tf_" in os.path.basename(path) else "pytorch"
        print(f"taking {path} as trained in {origin}, by its name; --origin says otherwise")
    if origin not in ORIGINS:
        raise UserError(f"--origin={origin!r}, expected one of {', '.join(ORIGINS)}")
    if os.path.exists(os.path.join(workdir, "config.json")):
        raise UserError(f"workdir {workdir} already holds a run; use another --workdir")
    state_dict = read(path)
    config = static_config(network, state_dict, origin)
    params, batch_stats = convert(state_dict, basisnet.create_abstract(config))
    train.claim_workdir(config, workdir)
    state = {"params": params, "batch_stats": batch_stats, "ema_params": params, "ema_batch_stats": batch_stats}
    with checkpoint.manager(workdir, keep=1) as checkpoints:
        checkpoint.save(checkpoints, 0, state)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{network}: {count:,} parameters, {config.num_classes} classes, now in {workdir}")


def static_config(network: str, state_dict: dict[str, np.ndarray], origin: str):
    """The config of the plain network at 224x224 whose classes and channels are those of the weights."""
    config = default.get_config()
    config.model = "static"
    config.dataset = "imagenet2012"
    config.test_split = config.validation_split = "validation"
    config.network.name = network
    config.network.update(ORIGINS[origin])
    for name in ("classifier.weight", "conv_stem.weight"):
        if name not in state_dict:
            raise UserError(f"the weights have no {name!r}: not a timm or geffnet state dict of {network}")
    config.num_classes = len(state_dict["classifier.weight"])
    config.channels = state_dict["conv_stem.weight"].shape[1]
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

    Raises:
      UserError: an array is missing, has another shape, or has no place in the network.
    """
    unused = {name for name in state_dict if not name.endswith("num_batches_tracked")}

    def take(path, leaf):
        keys = [key.key for key in path]
        name = f"{torch_module(network, keys[:-1])}.{LEAVES[keys[-1]]}"
        if name not in state_dict:
            raise UserError(f"the weights have no {name!r}, which the network's {'/'.join(map(str, keys))} needs")
        unused.discard(name)
        array = state_dict[name].astype(leaf.dtype)
        if array.ndim == 4:  # [O, I, h, w] -> [h, w, I, O]
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


LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def torch_module(network: nnx.Module, keys: list) -> str:
    """timm's name of the module at a path such as ["stages", 1, 0, "depthwise", "norm"]."""
    if keys[0] == "stages":
        stage, block, *layer = keys[1:]
        expands = network.stages[stage][block].expand is not None
        return f"blocks.{stage}.{block}.{(EXPANDING if expands else SEPARABLE)['.'.join(layer)]}"
    if keys[0] == "last":
        return f"blocks.{len(network.stages)}.0.{'conv' if keys[1] == 'conv' else 'bn1'}"
    return OUTER[".".join(keys)]


OUTER = {
    "stem.conv": "conv_stem",
    "stem.norm": "bn1",
    "head": "conv_head",
    "head.conv": "conv_head",
    "head.norm": "bn2",
    "classifier": "classifier",
}
_SQUEEZE_EXCITE = {"squeeze_excite.reduce": "se.conv_reduce", "squeeze_excite.expand": "se.conv_expand"}
EXPANDING = {
    "expand.conv": "conv_pw",
    "expand.norm": "bn1",
    "depthwise.conv": "conv_dw",
    "depthwise.norm": "bn2",
    "project.conv": "conv_pwl",
    "project.norm": "bn3",
    **_SQUEEZE_EXCITE,
}
SEPARABLE = {
    "depthwise.conv": "conv_dw",
    "depthwise.norm": "bn1",
    "project.conv": "conv_pw",
    "project.norm": "bn2",
    **_SQUEEZE_EXCITE,
}
