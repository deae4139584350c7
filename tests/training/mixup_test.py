"""Mixup and CutMix: lambda agrees with the pixels, nothing is lost over the batch, and alpha 0 is the identity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from basisnet_jax.training import mixup

NUM_KEYS = 400
MIXERS = {
    "mixup": functools.partial(mixup.mix, mixup_alpha=0.4),
    "cutmix": functools.partial(mixup.mix, cutmix_alpha=1.0),
    "either": functools.partial(mixup.mix, mixup_alpha=0.4, cutmix_alpha=1.0),
}
COMPILED = {name: jax.jit(jax.vmap(mixer, (0, None, None))) for name, mixer in MIXERS.items()}


@pytest.fixture(scope="module")
def batch():
    """Example i is i + 1 everywhere, and of class i."""
    images = jnp.broadcast_to(jnp.arange(1.0, 7)[:, None, None, None], [6, 12, 20, 3])
    return images, jnp.eye(6, 8)


def over_keys(name, batch):
    """Images [keys, B, H, W, C] and targets [keys, B, K]."""
    return COMPILED[name](jax.random.split(jax.random.key(0), NUM_KEYS), *batch)


@pytest.fixture(params=MIXERS)
def mixed(request, batch):
    return over_keys(request.param, batch)


def shares(targets):
    """Lambda of each batch, read from its targets: [..., B, K] -> [...]."""
    return targets[..., 0, 0]


def test_targets_stay_distributions_with_one_lambda_for_the_batch(mixed):
    _, targets = mixed
    np.testing.assert_allclose(jnp.sum(targets, -1), 1, rtol=1e-6)
    own = shares(targets)
    assert len(np.unique(own)) > 20
    assert np.all((own >= 0) & (own <= 1))
    for i in range(6):
        np.testing.assert_allclose(targets[:, i, i], own, atol=1e-6)
        np.testing.assert_allclose(targets[:, i, 5 - i], 1 - own, atol=1e-6)


def test_lambda_agrees_with_the_pixels(mixed):
    """As the level of an example is its class plus one, the mean level follows from the targets."""
    images, targets = mixed
    np.testing.assert_allclose(jnp.mean(images, (2, 3, 4)), targets @ jnp.arange(1.0, 9), rtol=1e-5)


def test_the_mean_over_the_batch_stays_at_every_pixel(mixed, batch):
    images, targets = mixed
    np.testing.assert_allclose(
        jnp.mean(images, 1), jnp.broadcast_to(jnp.mean(batch[0], 0), [NUM_KEYS, 12, 20, 3]), rtol=1e-6
    )
    np.testing.assert_allclose(jnp.mean(targets, 1), jnp.broadcast_to(jnp.mean(batch[1], 0), [NUM_KEYS, 8]), atol=1e-6)


def test_cutmix_pastes_whole_pixels_of_the_partner_in_a_box(batch):
    images, targets = over_keys("cutmix", batch)
    assert set(np.unique(images[:, 0])) == {1.0, 6.0}
    clipped = 0
    for image, share in zip(np.asarray(images[:, 0, :, :, 0]), shares(targets), strict=True):
        rows, columns = np.nonzero(image == 6.0)
        assert share == pytest.approx(1 - len(rows) / (12 * 20), abs=1e-6)
        if len(rows):
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert len(rows) == height * width
            clipped += height % 2 or width % 2  # An unclipped box has even sides.
    assert clipped > 10


def test_lambda_is_beta_distributed(batch):
    own = shares(over_keys("mixup", batch)[1])
    assert np.mean(own) == pytest.approx(0.5, abs=0.06)
    assert np.var(own) == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.02)


def test_mix_takes_each_half_of_the_time(batch):
    images, _ = over_keys("either", batch)
    is_cutmix = jnp.all((images[:, 0] == 1) | (images[:, 0] == 6), (1, 2, 3))
    assert jnp.mean(is_cutmix) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("function", [mixup.mix, mixup.mixup, mixup.cutmix])
def test_alpha_0_is_the_identity(function, batch):
    arguments = (0.0, 0.0) if function is mixup.mix else (0.0,)
    images, targets = function(jax.random.key(0), *batch, *arguments)
    assert images is batch[0] and targets is batch[1]


def test_the_same_key_mixes_the_same(mixed, batch, request):
    again = over_keys(request.node.callspec.params["mixed"], batch)
    jax.tree.map(np.testing.assert_array_equal, mixed, again)


def test_dtypes_stay(batch):
    images, targets = jax.eval_shape(MIXERS["either"], jax.random.key(0), batch[0].astype(jnp.bfloat16), batch[1])
    assert images.dtype == jnp.bfloat16 and targets.dtype == jnp.float32
