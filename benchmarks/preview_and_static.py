"""What a BasisNet is compared with: its preview and its specialist's plain network, side by side, in the same step."""

import functools

import jax
from flax import nnx

from basisnet_jax import basisnet, models, networks
from basisnet_jax.training import optimizer
from basisnet_jax.training.step import create_state, make_train_step


class PreviewAndStatic(nnx.Module):
    """Both networks on every image, neither knowing of the other: trained together as the two heads of a BasisNet."""

    def __init__(self, config):
        common = dict(num_classes=config.num_classes, channels=config.channels, dtype=jax.numpy.dtype(config.dtype))
        rngs, preview = nnx.Rngs(config.seed), dict(config.preview)
        self.preview_size = preview.pop("image_size")
        self.preview = networks.create(**preview, **common, rngs=rngs)
        self.static = networks.create(**config.network, **common, rngs=rngs)

    def __call__(self, images):
        preview_logits = self.preview(basisnet.resize(images, self.preview_size))
        return basisnet.Outputs(self.static(images), preview_logits)


def train_step(config, functions: models.Functional):
    """The step of a training run, `(state, batch, key) -> (state, metrics)`, and the function that makes its state."""
    steps = 1000  # an epoch; sets constants of the schedules only
    rate = optimizer.schedule(config.optimizer, steps, round(config.num_epochs * steps))
    tx = optimizer.create(config.optimizer, rate, functions)
    step = make_train_step(config, functions, tx, optimizer.temperature(config.coefficients, steps))
    return step, functools.partial(create_state, tx=tx)
