"""MobileNetV2 (Sandler et al. 2018, table 2): 3,504,872 parameters, 300.8M multiply-adds at 224x224."""

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


def _stage(expansion: int, out: int, repeats: int, stride: int) -> tuple[Block, ...]:
    first = Block(3, expansion, out, stride, activation="relu6")
    return (first, *(repeats - 1) * (Block(3, expansion, out, activation="relu6"),))


STAGES: Stages = (
    _stage(1, 16, 1, 1),
    _stage(6, 24, 2, 2),
    _stage(6, 32, 3, 2),
    _stage(6, 64, 4, 2),
    _stage(6, 96, 3, 1),
    _stage(6, 160, 3, 2),
    _stage(6, 320, 1, 1),
)


class MobileNetV2(Classifier):
    """Images [B, H, W, C], normalised, to logits [B, num_classes]. Arguments as for `MobileNetV3`.

    `head_features` is the last 1x1 convolution's width; it grows with `width` above 1 and never shrinks below.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        head_features: int = 1280,
        channels: int = 3,
        width: float = 1.0,
        stem_stride: int = 2,
        num_stages: int | None = None,
        stage_strides: tuple[int, ...] | None = None,
        dropout: float = 0.2,
        padding: str = "same",
        epsilon: float = 1e-3,
        momentum: float = 0.99,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        conv, norm = conv_and_norm(padding=padding, epsilon=epsilon, momentum=momentum, dtype=dtype, rngs=rngs)
        stem = conv(channels, make_divisible(32 * width), 3, stem_stride)
        self.stem = ConvNorm(stem, norm, "relu6")
        stages = adapted(STAGES, num_stages, stage_strides)
        self.stages, features = build_stages(stem.out_features, stages, width, conv, norm)
        self.head = ConvNorm(conv(features, make_divisible(head_features * max(width, 1.0))), norm, "relu6")
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.classifier = linear_classifier(self.head.conv.out_features, num_classes, dtype=dtype, rngs=rngs)

    def features(self, x):
        """What the classifier reads: [B, head features]."""
        return jnp.mean(self.head(run_stages(self.stages, self.stem(x))), axis=(1, 2))

    def __call__(self, x):
        return self.classifier(self.dropout(self.features(x)))
