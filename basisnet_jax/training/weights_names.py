"""What PyTorch code calls the modules of our networks: timm and geffnet, efficientnet_pytorch, torchvision."""

import dataclasses
import re

import numpy as np
from flax import nnx

from basisnet_jax import models
from basisnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Naming:
    """What one family of code calls our modules.

    Names of blocks may hold {stage}, {index} in the stage and {position} among all blocks; those outside {stages} and
    {blocks}, the numbers after the last; those inside {part} and {next}, the layer's number and the one after it.
    """

    code: str
    block: str
    network: dict[str, str]  # outside the blocks
    expanding: dict[str, str]  # in a block that expands
    separable: dict[str, str]  # in a block that does not
    first: int = 0  # number of the first stage and block
    origin: str | None = None  # where all weights of these names were trained; None: the names do not tell
    epsilon: float | None = None  # of batch norm, where it is not its origin's

    @property
    def signs(self) -> tuple[str, str]:
        """Two arrays that together only these names have."""
        block = self.block.format(stage=self.first, index=0, position=self.first)
        depthwise = self.separable["depthwise.conv"].format(part=0)
        return f"{self.network['stem.conv']}.weight", f"{block}.{depthwise}.weight"


TIMM = Naming(
    code="timm",
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
    code="efficientnet_pytorch",
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
    origin="tensorflow",
)
# Torchvision numbers all layers: the stem is features.0, the last convolution follows the blocks.
_TORCHVISION = dict(code="torchvision", origin="pytorch", first=1)
_STEM = {"stem.conv": "features.0.0", "stem.norm": "features.0.1"}
_LAYERS = {
    "expand.conv": "{part}.0",
    "expand.norm": "{part}.1",
    "depthwise.conv": "{part}.0",
    "depthwise.norm": "{part}.1",
    "squeeze_excite.reduce": "{part}.fc1",
    "squeeze_excite.expand": "{part}.fc2",
    "project.conv": "{part}.0",
    "project.norm": "{part}.1",
}
_FLAT_LAYERS = _LAYERS | {"project.conv": "{part}", "project.norm": "{next}"}
TORCHVISION_MOBILENET_V2 = Naming(
    block="features.{position}.conv",
    network=_STEM
    | {"head.conv": "features.{blocks}.0", "head.norm": "features.{blocks}.1", "classifier": "classifier.1"},
    expanding=_FLAT_LAYERS,
    separable=_FLAT_LAYERS,
    **_TORCHVISION,
)
TORCHVISION_MOBILENET_V3 = Naming(
    block="features.{position}.block",
    network=_STEM
    | {
        "last.conv": "features.{blocks}.0",
        "last.norm": "features.{blocks}.1",
        "head": "classifier.0",
        "classifier": "classifier.3",
    },
    expanding=_LAYERS,
    separable=_LAYERS,
    epsilon=1e-3,
    **_TORCHVISION,
)
TORCHVISION_EFFICIENTNET = Naming(
    block="features.{stage}.{index}.block",
    network=_STEM
    | {"head.conv": "features.{stages}.0", "head.norm": "features.{stages}.1", "classifier": "classifier.1"},
    expanding=_LAYERS,
    separable=_LAYERS,
    **_TORCHVISION,
)
NAMINGS = (TIMM, EFFICIENTNET_PYTORCH, TORCHVISION_MOBILENET_V2, TORCHVISION_MOBILENET_V3, TORCHVISION_EFFICIENTNET)
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def find(arrays: dict[str, np.ndarray]) -> tuple[Naming, str]:
    """The naming of the network among the arrays of a file, and what precedes its names, as "state_dict.module.".

    Of a network and its moving average ("ema"), the average.

    Raises:
      UserError: there is none, or more than one.
    """
    found = {}
    for names in NAMINGS:
        stem, block = names.signs
        for name in arrays:
            prefix = name.removesuffix(stem)
            if prefix != name and prefix[-1:] in ("", ".") and prefix + block in arrays:
                found[prefix] = names
    if not found:
        known = ", ".join(sorted({names.code for names in NAMINGS}))
        raise UserError(f"the weights are of no network known here: they have {some(arrays)}, not the names of {known}")
    averages = [prefix for prefix in found if "ema" in re.split(r"[._]", prefix)]
    prefixes = averages or [*found]
    if len(prefixes) > 1:
        quoted = ", ".join(repr(prefix) for prefix in prefixes[:3])
        raise UserError(f"the file holds {len(prefixes)} networks, under {quoted}; save the one that is meant alone")
    return found[prefixes[0]], prefixes[0]


def network_only(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays of the network by their own names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def of_module(names: Naming, network: nnx.Module, keys: list) -> str | None:
    """The name of the module at a path such as ["stages", 1, 0, "depthwise", "norm"]; None: these names have none."""
    network = models.unwrapped(network)
    counts = {"stages": len(network.stages), "blocks": sum(map(len, network.stages))}
    counts = {name: count + names.first for name, count in counts.items()}
    if keys[0] != "stages":
        name = names.network.get(".".join(keys))
        return name and name.format(**counts)
    stage, index, *layer = keys[1:]
    block = models.unwrapped(network.stages[stage][index])
    names_in_block = names.separable if block.expand is None else names.expanding
    name = names_in_block.get(".".join(layer))
    if name is None:
        return None
    parts = [part for part in ("expand", "depthwise", "squeeze_excite", "project") if getattr(block, part) is not None]
    part = parts.index(layer[0]) if layer[0] in parts else 0
    position = names.first + sum(map(len, network.stages[:stage])) + index
    place = names.block.format(stage=names.first + stage, index=index, position=position)
    return f"{place}.{name.format(part=part, next=part + 1)}"


def some(names) -> str:
    """The first three of some names, and how many more there are."""
    names = [*names]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
