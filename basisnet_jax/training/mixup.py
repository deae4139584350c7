"""Mixup and CutMix: batches whose examples and targets are mixed in pairs, on the accelerator.

As in the authors' code there is one lambda, and one box, for the whole batch. Where that code draws a random order for
the partners, here example i is mixed with example B - 1 - i, as in EfficientNet's code: training batches come shuffled,
so the pairs are as random, and between devices only one permutation is sent instead of every image to every device.
"""

import jax
import jax.numpy as jnp


def mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Mixup or CutMix of a batch, or, where both alphas are above 0, one of them with probability one half each.

    Args:
      key: a random key.
      images: float [B, H, W, C]; normalized or not, since mixing is affine.
      targets: distributions [B, K].
      mixup_alpha: as in `mixup`, a Python number, as it decides what is compiled.
      cutmix_alpha: as in `cutmix`, likewise.

    Returns:
      Images and targets, shaped as they came; both alphas 0: as they came.
    """
    if not (mixup_alpha and cutmix_alpha):
        return mixup(key, images, targets, mixup_alpha) if mixup_alpha else cutmix(key, images, targets, cutmix_alpha)
    choice_key, mixup_key, cutmix_key = jax.random.split(key, 3)
    is_mixup = jax.random.bernoulli(choice_key)
    own_share = jax.random.beta(mixup_key, mixup_alpha, mixup_alpha)
    own_HW = jnp.where(is_mixup, own_share, _outside_of_box(cutmix_key, images.shape[1:3], cutmix_alpha))
    return _with_partners(images, targets, own_HW, jnp.where(is_mixup, own_share, jnp.mean(own_HW)))


def mixup(key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """lambda x_i + (1 - lambda) x_j with lambda ~ Beta(alpha, alpha), and the same of the targets.

    Zhang et al. 2018, section 2; arguments and result as in `mix`. Their alpha on ImageNet is 0.2; 0 is the identity.
    """
    if not alpha:
        return images, targets
    own_share = jax.random.beta(key, alpha, alpha)
    return _with_partners(images, targets, own_share, own_share)


def cutmix(key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """x_i with a box of x_j pasted into its place, and the targets mixed by the share of pixels.

    Yun et al. 2019, section 3.1; arguments and result as in `mix`. The box has sides sqrt(1 - lambda) H and W, lambda
    ~ Beta(alpha, alpha), about a centre drawn from the whole image; the targets' lambda is what of x_i is left after
    the box is rounded to pixels and clipped to the image. Their alpha is 1; 0 is the identity.
    """
    if not alpha:
        return images, targets
    own_HW = _outside_of_box(key, images.shape[1:3], alpha)
    return _with_partners(images, targets, own_HW, jnp.mean(own_HW))


def _outside_of_box(key, size, alpha):
    """1 outside the box and 0 inside: float32 [H, W], so that its mean is lambda."""
    share_key, *centre_keys = jax.random.split(key, 3)
    share = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))

    def inside(key, length):
        half = (length * share).astype(jnp.int32) // 2
        centre = jax.random.randint(key, (), 0, length)
        return (jnp.arange(length) >= centre - half) & (jnp.arange(length) < centre + half)

    rows, columns = (inside(key, length) for key, length in zip(centre_keys, size, strict=True))
    return 1 - (rows[:, None] & columns).astype(jnp.float32)


def _with_partners(images, targets, own_HW, own_share):
    """`own_HW`, [H, W] or a scalar, of each image and the rest of its partner; `own_share` of its target likewise."""
    own_HW1 = jnp.asarray(own_HW, images.dtype)[..., None]
    own_share = own_share.astype(targets.dtype)
    return (
        own_HW1 * images + (1 - own_HW1) * images[::-1],
        own_share * targets + (1 - own_share) * targets[::-1],
    )
