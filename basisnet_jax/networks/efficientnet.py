"""EfficientNet-B0, B1 and B2 (Tan & Le 2019, table 1 and section 4) and EfficientNet-Lite0 (the authors' code).

Parameters at 1000 classes, 3 channels: B0 5,288,548, B1 7,794,184, B2 9,109,994, Lite0 4,652,008.
Multiply-adds at each network's own size: B0 385.8M at 224x224, B1 686.8M at 240x240, B2 993.6M at 260x260, Lite0 385.2M
at 224x224. The paper rounds to 390M, 700M and 1.0B.
"""

import dataclasses
import math

import jax.numpy as jnp
from flax import nnx

from basisnet_jax.classifier import Classifier
from basisnet_jax.networks.blocks import (
    Block,
    ConvNorm,
    Stages,
    adapted,
    build_stages,
    conv_and_norm,
    linear_classifier,
    make_divisible,
    run_stages,
)


def _stage(
    kernel: int, expansion: int, out: int, repeats: int, stride: int, squeeze: float, activation: str
) -> tuple[Block, ...]:
    row = Block(
        kernel,
        expansion,
        out,
        squeeze=squeeze,
        squeeze_of="input",
        squeeze_activations=(activation, "sigmoid"),
        activation=activation,
    )
    return (dataclasses.replace(row, stride=stride), *(repeats - 1) * (row,))


def _stages(width: float = 1.0, depth: float = 1.0, squeeze: float = 0.25, activation: str = "swish") -> Stages:
    """B0's table with its channels and its repeats multiplied; repeats are rounded up."""
    return tuple(
        _stage(kernel, expansion, make_divisible(out * width), math.ceil(repeats * depth), stride, squeeze, activation)
        for kernel, expansion, out, repeats, stride in (
            (3, 1, 16, 1, 1),
            (3, 6, 24, 2, 2),
            (5, 6, 40, 2, 2),
            (3, 6, 80, 3, 2),
            (5, 6, 112, 3, 1),
            (5, 6, 192, 4, 2),
            (3, 6, 320, 1, 1),
        )
    )


# The stem's 32 channels are not in the tables: 1.1 times as many round to 32 again (from B3 on they would not).
B0 = _stages()
B1 = _stages(depth=1.1)
B2 = _stages(width=1.1, depth=1.2)
LITE0 = _stages(squeeze=0.0, activation="relu6")


def with_drop_connect(stages: Stages, rate: float) -> Stages:
    """The table with block i of n dropped at rate * i / n (stochastic depth, Huang et al. 2016): never the first."""
    total = sum(map(len, stages))
    rates = iter(rate * i / total for i in range(total))
    return tuple(tuple(dataclasses.replace(row, drop_connect=next(rates)) for row in stage) for stage in stages)


class EfficientNet(Classifier):
    """Images [B, H, W, C], normalised, to logits [B, num_classes].

    Args:
      stages: `B0`, `B1`, `B2` or `LITE0`.
      head_features: of the last 1x1 convolution (1408 for B2, else 1280); not scaled by `width`.
      width: multiplies the channels of stem and stages, on top of B2's own 1.1.
      scale_stem: False, as for Lite0, keeps the stem's 32 channels at every `width`.
      drop_connect: rate at which the last block's branch is dropped in training; earlier blocks' rates grow linearly.
      stem_stride, num_stages, stage_strides, dropout, padding, epsilon, momentum, dtype: as for `MobileNetV3`.
    """

    def __init__(
        self,
        stages: Stages,
        *,
        num_classes: int,
        head_features: int,
        channels: int = 3,
        width: float = 1.0,
        scale_stem: bool = True,
        stem_stride: int = 2,
        num_stages: int | None = None,
        stage_strides: tuple[int, ...] | None = None,
        dropout: float = 0.2,
        drop_connect: float = 0.2,
        padding: str = "same",
        epsilon: float = 1e-3,
        momentum: float = 0.99,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        conv, norm = conv_and_norm(padding=padding, epsilon=epsilon, momentum=momentum, dtype=dtype, rngs=rngs)
        activation = stages[0][0].activation
        stem = conv(channels, make_divisible(32 * width) if scale_stem else 32, 3, stem_stride)
        self.stem = ConvNorm(stem, norm, activation)
        stages = with_drop_connect(adapted(stages, num_stages, stage_strides), drop_connect)
        self.stages, features = build_stages(stem.out_features, stages, width, conv, norm, rngs)
        self.head = ConvNorm(conv(features, head_features), norm, activation)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.classifier = linear_classifier(head_features, num_classes, dtype=dtype, rngs=rngs)

    def features(self, x):
        """What the classifier reads: [B, head_features]."""
        return jnp.mean(self.head(run_stages(self.stages, self.stem(x))), axis=(1, 2))

    def __call__(self, x):
        return self.classifier(self.dropout(self.features(x)))
