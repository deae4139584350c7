"""What a BasisNet is compared with: its preview and its specialist's plain network, side by side, in the same step."""

import jax
from flax import nnx

from basisnet_jax import basisnet, networks


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
