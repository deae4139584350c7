"""What the mobile networks are made of: convolution + batch norm, squeeze-and-excite, the inverted residual.

A network's table is a tuple of stages, a stage a tuple of `Block` rows, as in the papers. Nothing here knows of
bases: `basisnet_jax.basis.with_bases` works on these networks as it does on anybody else's.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from basisnet_jax.errors import UserError
from basisnet_jax.networks.batch_norm import BatchNorm
from basisnet_jax.ops import conv as conv_lib
from basisnet_jax.ops import initializers

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "swish": jax.nn.swish,
    "hard_swish": jax.nn.hard_swish,
    "sigmoid": jax.nn.sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
}


@dataclasses.dataclass(frozen=True)
class Block:
    """One row of a network's table: an inverted residual."""

    kernel: int
    expansion: float  # expanded channels / input channels, before rounding; 1 means no expanding convolution
    out: int  # output channels at width 1
    stride: int = 1
    squeeze: float = 0.0  # squeeze-and-excite channels / those of `squeeze_of`; 0 means none
    activation: str = "relu"
    squeeze_of: str = "expanded"  # or "input": the channels before expansion, their share not made divisible
    squeeze_activations: tuple[str, str] = ("relu", "hard_sigmoid")  # of the reduced channels and of the gates
    drop_connect: float = 0.0  # share of the examples that skip the block in training, where it is a residual one


Stages = tuple[tuple[Block, ...], ...]


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Channels rounded to a multiple of `divisor`, never more than 10 % down (MobileNetV2, reference code)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def adapted(stages: Stages, num_stages: int | None, stage_strides: tuple[int, ...] | None) -> Stages:
    """The table with only its first stages and other strides at each stage's start; None keeps the paper's."""
    stages = stages[:num_stages]
    if stage_strides is None:
        return stages
    if len(stage_strides) != len(stages):
        raise UserError(
            f"stage_strides={tuple(stage_strides)} has {len(stage_strides)} entries, expected {len(stages)}"
        )
    return tuple(
        (dataclasses.replace(stage[0], stride=stride), *stage[1:])
        for stage, stride in zip(stages, stage_strides, strict=True)
    )


def conv_and_norm(*, padding: str, epsilon: float, momentum: float, dtype, rngs: nnx.Rngs):
    """The two layer factories that a network's blocks are built with.

    Args:
      padding: "same" (TensorFlow: at stride 2 the extra pixel is at the end) or "symmetric" (PyTorch: kernel // 2).
      epsilon: of batch norm; TensorFlow's MobileNetV3 uses 1e-3, PyTorch 1e-5.
      momentum: what the running statistics keep per step (0.9 here is 0.1 in PyTorch).
      dtype: of the computation; params and statistics are float32.

    Returns:
      `conv(in_features, out_features, kernel=1, stride=1, groups=1, use_bias=False)` and `norm(features, activation)`.
    """
    if padding not in ("same", "symmetric"):
        raise UserError(f'padding={padding!r}, expected "same" or "symmetric"')

    def conv(in_features, out_features, kernel=1, stride=1, groups=1, use_bias=False):
        # He's fan-out initialisation; a depthwise kernel's fan-out is that of its own group.
        stddev = (2.0 * groups / (kernel * kernel * out_features)) ** 0.5
        return nnx.Conv(
            in_features,
            out_features,
            (kernel, kernel),
            stride,
            padding="SAME" if padding == "same" else kernel // 2,
            feature_group_count=groups,
            use_bias=use_bias,
            dtype=dtype,
            kernel_init=initializers.normal(stddev),
            conv_general_dilated=conv_lib.conv_general_dilated,
            rngs=rngs,
        )

    norm = functools.partial(BatchNorm, momentum=momentum, epsilon=epsilon, dtype=dtype, rngs=rngs)
    return conv, norm


def linear_classifier(features: int, num_classes: int, *, dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """The last layer, whose first predictions are nearly even."""
    return nnx.Linear(features, num_classes, dtype=dtype, kernel_init=initializers.normal(0.01), rngs=rngs)


class ConvNorm(nnx.Module):
    """Convolution, batch norm, activation (None: linear)."""

    def __init__(self, conv: nnx.Conv, norm, activation: str | None):
        self.conv = conv
        self.norm = norm(conv.out_features, activation=ACTIVATIONS[activation] if activation else nnx.identity)

    def __call__(self, x):
        return self.norm(self.conv(x))


class SqueezeExcite(nnx.Module):
    """Channel gates from the pooled input (Hu et al. 2018)."""

    def __init__(self, features: int, reduced: int, activations: tuple[str, str], conv):
        self.reduce = conv(features, reduced, use_bias=True)
        self.expand = conv(reduced, features, use_bias=True)
        self.activations = activations

    def __call__(self, x):
        inner, gate = (ACTIVATIONS[name] for name in self.activations)
        return x * gate(self.expand(inner(self.reduce(jnp.mean(x, axis=(1, 2), keepdims=True)))))


class InvertedResidual(nnx.Module):
    """Expand 1x1, depthwise, squeeze-and-excite, project 1x1; added to the input where the shapes allow.

    In training, `block.drop_connect` leaves only the input of some examples; `rngs` (its stream "dropout") says which.
    """

    def __init__(self, in_features: int, block: Block, width: float, conv, norm, rngs: nnx.Rngs | None = None):
        expanded = in_features if block.expansion == 1 else make_divisible(in_features * block.expansion)
        self.in_features = in_features
        self.out_features = make_divisible(block.out * width)
        self.residual = block.stride == 1 and in_features == self.out_features
        self.expand = None if block.expansion == 1 else ConvNorm(conv(in_features, expanded), norm, block.activation)
        depthwise = conv(expanded, expanded, block.kernel, block.stride, groups=expanded)
        self.depthwise = ConvNorm(depthwise, norm, block.activation)
        of_input = block.squeeze_of == "input"
        reduced = round(in_features * block.squeeze) if of_input else make_divisible(expanded * block.squeeze)
        self.squeeze_excite = (
            SqueezeExcite(expanded, reduced, block.squeeze_activations, conv) if block.squeeze else None
        )
        self.project = ConvNorm(conv(expanded, self.out_features), norm, None)
        drops = self.residual and block.drop_connect > 0
        self.drop = nnx.Dropout(block.drop_connect, broadcast_dims=(1, 2, 3), rngs=rngs) if drops else None

    def __call__(self, x):
        y = x if self.expand is None else self.expand(x)
        y = self.depthwise(y)
        if self.squeeze_excite is not None:
            y = self.squeeze_excite(y)
        y = self.project(y)
        if self.drop is not None:
            y = self.drop(y)
        return x + y if self.residual else y


def build_stages(
    in_features: int, stages: Stages, width: float, conv, norm, rngs: nnx.Rngs | None = None
) -> tuple[nnx.List, int]:
    """A list of stages, each a list of blocks, and the channels that leave the last."""
    built = nnx.List()
    for stage in stages:
        blocks = nnx.List()
        for row in stage:
            blocks.append(InvertedResidual(in_features, row, width, conv, norm, rngs))
            in_features = blocks[-1].out_features
        built.append(blocks)
    return built, in_features


def run_stages(stages: nnx.List, x: jax.Array) -> jax.Array:
    for stage in stages:
        for block in stage:
            x = block(x)
    return x
