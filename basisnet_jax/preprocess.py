"""What every model sees of an image, in training, evaluation, prediction and export alike."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from basisnet_jax.errors import UserError

LUMA = (0.2989, 0.5870, 0.1140)  # of red, green and blue, as TensorFlow's


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """From an image to what a model takes. The fields are those of a config.

    `preprocess(image)` is the central square, its side `eval_crop` of the image's shorter side, resized with
    antialiasing; the model takes `normalize` of it. (`data.decoding` does the same in an input pipeline.)

    Example:
      >>> preprocess = Preprocess(image_size=16, channels=3, mean=(0.5,), stddev=(0.25,))
      >>> image = preprocess(np.full((40, 30, 3), 255, np.uint8))
      >>> image.shape, float(preprocess.normalize(image[None]).max())
      ((16, 16, 3), 2.0)
    """

    image_size: int  # pixels, of a side
    channels: int  # 1 or 3
    resize: str = "bilinear"  # or "bicubic"
    eval_crop: float = 1.0
    mean: tuple[float, ...] | None = None  # per channel, of images in 0..1; one number stands for all channels
    stddev: tuple[float, ...] | None = None  # None, both: part of the function that takes the image, as in an export

    def __post_init__(self):
        for name in ("mean", "stddev"):
            numbers = getattr(self, name)
            if numbers is not None and len(numbers) not in (1, self.channels):
                raise ValueError(
                    f"{name}={numbers} with channels={self.channels}, expected one number or one a channel"
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, self.channels

    def normalize(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, C] in 0..255 to float32, less the mean, over the standard deviation."""
        return (images.astype(jnp.float32) / 255.0 - jnp.asarray(self.mean)) / jnp.asarray(self.stddev)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """A uint8 image [h, w, 1 or 3] of any size as uint8 [image_size, image_size, channels]."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
            raise ValueError(f"an image of {image.dtype} {image.shape}, expected uint8 [h, w, 1 or 3]")
        height, width, _ = image.shape
        side = int(np.round(np.float32(self.eval_crop) * np.float32(min(height, width))))
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side].astype(np.float32)
        if image.shape[-1] == 3 and self.channels == 1:
            image = np.floor(
                image @ np.array(LUMA, np.float32)[:, None] * np.float32(255.5 / 255)
            )  # as TensorFlow rounds
        if side != self.image_size:
            weights = resizing(side, self.image_size, self.resize)
            image = np.einsum("ih,jw,hwc->ijc", weights, weights, image, optimize=True)
        image = np.clip(np.round(image), 0, 255).astype(np.uint8)
        return np.broadcast_to(image, self.shape) if image.shape[-1] < self.channels else image


def of(config) -> Preprocess:
    """A config's, of a run or of an experiment."""
    values = {field.name: config[field.name] for field in dataclasses.fields(Preprocess)}
    values |= {name: tuple(values[name]) for name in ("mean", "stddev")}
    try:
        return Preprocess(**values)
    except ValueError as error:
        raise UserError(f"config.{error}") from error


@functools.lru_cache(maxsize=64)
def resizing(old: int, new: int, method: str) -> np.ndarray:
    """The weights [new, old] of the old pixels in the new ones, antialiased where there are fewer of these."""
    scale = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    x = np.abs(centres[:, None] - np.arange(old)) / scale
    if method == "bilinear":
        weights = np.maximum(0, 1 - x)
    elif method == "bicubic":  # Keys, a = -1/2
        near, far = ((1.5 * x - 2.5) * x) * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    else:
        raise ValueError(f"resize={method!r}, expected bilinear or bicubic")
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
