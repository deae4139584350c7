"""What every model sees of an image, in training, evaluation, prediction and export alike."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """From an image to what a model takes. The fields are those of a config.

    The central square, its side `eval_crop` of the image's shorter side, is resized with antialiasing and rounded to
    uint8 [image_size, image_size, channels]; `data.decoding` does that. The model takes `normalize` of it.
    """

    image_size: int  # pixels, of a side
    channels: int  # 1 or 3
    resize: str = "bilinear"  # or "bicubic"
    eval_crop: float = 1.0
    mean: tuple[float, ...] | None = None  # per channel, of images in 0..1; one number stands for all channels
    stddev: tuple[float, ...] | None = None  # None, both: part of the function that takes the image, as in an export

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, self.channels

    def normalize(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, C] in 0..255 to float32, less the mean, over the standard deviation."""
        return (images.astype(jnp.float32) / 255.0 - jnp.asarray(self.mean)) / jnp.asarray(self.stddev)


def of(config) -> Preprocess:
    """A config's, of a run or of an experiment."""
    values = {field.name: config[field.name] for field in dataclasses.fields(Preprocess)}
    return Preprocess(**{name: tuple(value) if name in ("mean", "stddev") else value for name, value in values.items()})
