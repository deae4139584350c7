"""MobileNetV3 Large and Small (Howard et al. 2019, tables 1 and 2).

Parameters at width 1, 1000 classes, 3 channels: Large 5,483,032, Small 2,542,856.
Multiply-adds at 224x224: Large 216.6M, Small 56.5M.
"""

import jax.numpy as jnp
from flax import nnx

from basisnet_jax.classifier import Classifier
from basisnet_jax.networks.blocks import (
    ACTIVATIONS,
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

# Expansions are ratios, as in the authors' code: at other widths they apply to the rounded input channels.
LARGE: Stages = (
    (Block(3, 1, 16),),
    (Block(3, 4, 24, stride=2), Block(3, 3, 24)),
    (Block(5, 3, 40, stride=2, squeeze=0.25), *2 * (Block(5, 3, 40, squeeze=0.25),)),
    (
        Block(3, 6, 80, stride=2, activation="hard_swish"),
        Block(3, 2.5, 80, activation="hard_swish"),
        *2 * (Block(3, 2.3, 80, activation="hard_swish"),),
    ),
    2 * (Block(3, 6, 112, squeeze=0.25, activation="hard_swish"),),
    (
        Block(5, 6, 160, stride=2, squeeze=0.25, activation="hard_swish"),
        *2 * (Block(5, 6, 160, squeeze=0.25, activation="hard_swish"),),
    ),
)

SMALL: Stages = (
    (Block(3, 1, 16, stride=2, squeeze=0.25),),
    (Block(3, 4.5, 24, stride=2), Block(3, 3.67, 24)),
    (
        Block(5, 4, 40, stride=2, squeeze=0.25, activation="hard_swish"),
        *2 * (Block(5, 6, 40, squeeze=0.25, activation="hard_swish"),),
    ),
    2 * (Block(5, 3, 48, squeeze=0.25, activation="hard_swish"),),
    (
        Block(5, 6, 96, stride=2, squeeze=0.25, activation="hard_swish"),
        *2 * (Block(5, 6, 96, squeeze=0.25, activation="hard_swish"),),
    ),
)


class MobileNetV3(Classifier):
    """Images [B, H, W, C], normalised, to logits [B, num_classes].

    Args:
      stages: `LARGE` or `SMALL`.
      head_features: width of the 1x1 convolution after pooling (1280 for Large, 1024 for Small); not scaled by `width`.
      stem_stride, stage_strides: strides of the stem and of each stage's first block. The tables' own reduce the image
        32 times, which leaves one pixel of a 28x28 image: small images want 1 where the table has 2.
      num_stages: only the first so many stages of the table.
      dropout: rate before the classifier.
      padding, epsilon, momentum, dtype: see `conv_and_norm`.
    """

    def __init__(
        self,
        stages: Stages,
        *,
        num_classes: int,
        head_features: int,
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
        stem = conv(channels, make_divisible(16 * width), 3, stem_stride)
        self.stem = ConvNorm(stem, norm, "hard_swish")
        stages = adapted(stages, num_stages, stage_strides)
        self.stages, features = build_stages(stem.out_features, stages, width, conv, norm)
        self.last = ConvNorm(conv(features, make_divisible(6 * stages[-1][-1].out * width)), norm, "hard_swish")
        self.head = conv(self.last.conv.out_features, head_features, use_bias=True)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.classifier = linear_classifier(head_features, num_classes, dtype=dtype, rngs=rngs)

    def features(self, x):
        """What the classifier reads: [B, head_features]."""
        x = self.last(run_stages(self.stages, self.stem(x)))
        x = self.head(jnp.mean(x, axis=(1, 2), keepdims=True))
        return ACTIVATIONS["hard_swish"](x)[:, 0, 0]

    def __call__(self, x):
        return self.classifier(self.dropout(self.features(x)))
