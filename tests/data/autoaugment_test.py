"""Operations against Pillow; policies, RandAugment and random erasing against what their papers say."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from basisnet_jax.data import autoaugment, operations
from basisnet_jax.errors import UserError

SIZE = 64


def images():
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    china, flower = (load_sample_image(f"{name}.jpg") for name in ("china", "flower"))
    return {
        "china": china[100 : 100 + SIZE, 200 : 200 + SIZE],
        "flower, not square": flower[150 : 150 + SIZE, 250 : 257 + SIZE],
        "smooth": np.stack([30 + 90 * x, 60 + 120 * y, 40 + 100 * x * y], -1).astype(np.uint8),
        "noise": generator.integers(0, 256, [SIZE, SIZE, 3], np.uint8),
        "one level": np.full([SIZE, SIZE, 3], 77, np.uint8),
        "two levels": np.where(generator.random([SIZE, SIZE, 3]) < 0.01, 200, 50).astype(np.uint8),
        "grey": np.asarray(Image.fromarray(china[100 : 100 + SIZE, 200 : 200 + SIZE]).convert("L"))[..., None],
    }


IMAGES = images()


@pytest.fixture(params=IMAGES)
def image(request):
    return IMAGES[request.param]


def pillow(image, change):
    """`change`, a function of a Pillow image, of an array."""
    squeezed = image[..., 0] if image.shape[-1] == 1 else image
    return np.asarray(change(Image.fromarray(np.ascontiguousarray(squeezed)))).reshape(image.shape)


def assert_same(actual, expected):
    assert actual.dtype == tf.uint8
    difference = np.abs(actual.numpy().astype(int) - expected)
    assert not difference.any(), f"off by {difference.max()} levels, at {np.mean(difference > 0):.2%}"


def test_point_operations_are_pillows(image):
    ours = tf.constant(image)
    assert_same(operations.auto_contrast(ours), pillow(image, ImageOps.autocontrast))
    assert_same(operations.equalize(ours), pillow(image, ImageOps.equalize))
    assert_same(operations.invert(ours), pillow(image, ImageOps.invert))
    for bits in range(9):  # 0 bits count as 1
        expected = pillow(image, lambda im, bits=bits: ImageOps.posterize(im, max(bits, 1)))
        assert_same(operations.posterize(ours, bits), expected)
    for threshold in (0, 51, 128, 255, 256):
        expected = pillow(image, lambda im, threshold=threshold: ImageOps.solarize(im, threshold))
        assert_same(operations.solarize(ours, threshold), expected)
    for addition in (0, 33, 110, 200):  # Pillow has no such operation
        expected = np.where(image < 128, np.minimum(image.astype(int) + addition, 255), image)
        assert_same(operations.solarize_add(ours, addition), expected)


@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_enhancements_are_pillows(image, name):
    for factor in (0.0, 0.1, 0.46, 1.0, 1.54, 1.9, 5.0):
        expected = pillow(image, lambda im, factor=factor: getattr(ImageEnhance, name)(im).enhance(factor))
        assert_same(getattr(autoaugment, name.lower())(tf.constant(image), tf.constant(factor)), expected)


def affine(image, a, b, c, d, e, f):
    """By Pillow, whose coordinates are 0.5 at the middle of the first pixel where ours are 0."""
    fill = (128,) * image.shape[-1] if image.shape[-1] > 1 else 128
    data = (a, b, c + 0.5 - (a + b) / 2, d, e, f + 0.5 - (d + e) / 2)
    size = image.shape[1::-1]
    return pillow(image, lambda im: im.transform(size, Image.Transform.AFFINE, data, fillcolor=fill))


def assert_same_but_for_ties(actual, expected, share=0.005):
    """Where a point falls between two pixels, Pillow's fixed-point arithmetic may take the other one."""
    assert actual.dtype == tf.uint8
    assert np.mean(np.any(actual.numpy() != expected, -1)) <= share


@pytest.mark.parametrize("sign", [1, -1])
def test_geometric_operations_are_pillows_to_the_nearest_pixel(image, sign):
    ours, fill = tf.constant(image), (128,) * image.shape[-1] if image.shape[-1] > 1 else 128
    for degrees in (6.0, 24.0, 87.0):
        expected = pillow(image, lambda im, degrees=degrees: im.rotate(sign * degrees, fillcolor=fill))
        assert_same_but_for_ties(operations.rotate(ours, tf.constant(sign * degrees)), expected)
    for amount in (0.0713 * sign, 0.3137 * sign):
        assert_same_but_for_ties(operations.shear(ours, x=amount), affine(image, 1, amount, 0, 0, 1, 0))
        assert_same_but_for_ties(operations.shear(ours, y=amount), affine(image, 1, 0, 0, amount, 1, 0))
    for pixels in (1.0 * sign, 20.3 * sign, 60.0 * sign):
        assert_same(operations.translate(ours, x=pixels), affine(image, 1, 0, pixels, 0, 1, 0))
        assert_same(operations.translate(ours, y=pixels), affine(image, 1, 0, 0, 0, 1, pixels))


def test_cutout_greys_its_square_clipped_to_the_image(image):
    height, width = image.shape[:2]
    for y, x in ((0.5, 0.5), (0.0, 0.999)):
        expected = image.copy()
        row, column = int(y * height), int(x * width)
        expected[max(row - 7, 0) : row + 7, max(column - 7, 0) : column + 7] = 128
        assert_same(operations.cutout(tf.constant(image), tf.constant([y, x]), 7), expected)
    assert_same(operations.cutout(tf.constant(image), tf.constant([0.5, 0.5]), 0), image)


MAGNITUDES = {
    "Rotate": lambda im, m: im.rotate(3.0 * m, fillcolor=(128,) * 3),
    "Posterize": lambda im, m: ImageOps.posterize(im, max(int(0.4 * m), 1)),
    "Solarize": lambda im, m: ImageOps.solarize(im, int(25.6 * m)),
    "Color": lambda im, m: ImageEnhance.Color(im).enhance(0.18 * m + 0.1),
    "TranslateX": lambda im, m: im.transform(
        im.size, Image.Transform.AFFINE, (1, 0, round(SIZE * 10 * m / 224), 0, 1, 0), fillcolor=(128,) * 3
    ),
}


@pytest.mark.parametrize("magnitude", [0, 3, 7, 10])
@pytest.mark.parametrize("name", MAGNITUDES)
def test_magnitudes_are_those_of_the_published_code(name, magnitude):
    draw = [0.9, 0.5, 0.5]  # the positive sign
    actual = operate(IMAGES["china"], name, magnitude, draw, autoaugment.IMAGENET_SCALE)
    expected = pillow(IMAGES["china"], lambda im: MAGNITUDES[name](im, magnitude))
    assert_same_but_for_ties(actual, expected, 0.005 if name == "Rotate" else 0)


@pytest.mark.parametrize("magnitude", [0, 2, 8, 10])
def test_with_cifars_scale_more_magnitude_is_more_change(magnitude):
    image, scale = IMAGES["china"], autoaugment.CIFAR10_SCALE
    solarized = pillow(image, lambda im: ImageOps.solarize(im, 256 - int(25.6 * magnitude)))
    assert_same(operate(image, "Solarize", magnitude, [0.0] * 3, scale), solarized)
    posterized = pillow(image, lambda im: ImageOps.posterize(im, max(4 - int(0.4 * magnitude), 1)))
    assert_same(operate(image, "Posterize", magnitude, [0.0] * 3, scale), posterized)


def test_pixel_amounts_grow_with_the_image():
    for size, half in ((224, 40), (112, 20), (32, 5)):
        image = np.zeros([size, size, 3], np.uint8)
        cut = operate(image, "Cutout", 10, [0.0, 0.5, 0.5], autoaugment.IMAGENET_SCALE).numpy()
        assert np.sum(cut[..., 0] == 128) == (2 * half) ** 2
        moved = operate(image, "TranslateY", 9, [0.9, 0.0, 0.0], autoaugment.IMAGENET_SCALE).numpy()
        assert np.sum(moved[:, 0, 0] == 128) == round(size * 90 / 224)


def test_signed_operations_go_both_ways():
    image = IMAGES["flower, not square"]
    for name in autoaugment.OPERATIONS:
        one, other = (operate(image, name, 5, [sign, 0.5, 0.5], autoaugment.IMAGENET_SCALE) for sign in (0.2, 0.8))
        signed = name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
        assert np.any(one.numpy() != other.numpy()) == signed, name


def operate(image, name, magnitude, draw, scale):
    index = tf.constant(autoaugment.OPERATIONS.index(name))
    return autoaugment.apply_operation(tf.constant(image), index, magnitude, tf.constant(draw), scale)


@pytest.mark.parametrize("policy", [autoaugment.IMAGENET, autoaugment.CIFAR10], ids=["imagenet", "cifar10"])
def test_policies_are_25_pairs_of_known_operations(policy):
    assert [len(steps) for steps in policy] == [2] * 25
    for step in itertools.chain.from_iterable(policy):
        assert step.name in autoaugment.OPERATIONS
        assert 0 <= step.probability <= 1
        assert 0 <= step.magnitude <= 10


def augmented(image, seeds, policy, **kwargs):
    """Of each seed, by tf.data as in training."""
    image = tf.constant(image)
    ds = tf.data.Dataset.from_tensor_slices(tf.constant(seeds, tf.int64))
    ds = ds.map(lambda i: autoaugment.apply(image, tf.stack([tf.constant(5, tf.int64), i]), policy, **kwargs))
    return list(ds.as_numpy_iterator())


@pytest.mark.slow
@pytest.mark.parametrize("policy, channels", [("imagenet", 3), ("cifar10", 1), ("randaugment", 1), ("randaugment", 3)])
def test_a_policy_is_a_function_of_the_seed(policy, channels):
    image = IMAGES["china"][:40, :48, :channels]
    results = augmented(image, [*range(30), *range(30)], policy)
    np.testing.assert_array_equal(results[:30], results[30:])
    assert results[0].shape == image.shape
    assert len({result.tobytes() for result in results}) > 10


@pytest.mark.slow
def test_a_policy_draws_its_rows_evenly_and_its_steps_by_their_probability(monkeypatch):
    certain = tuple((autoaugment.Step("Solarize", 1.0, i), autoaugment.Step("Invert", 0.25, 0)) for i in range(4))
    monkeypatch.setitem(autoaugment._POLICIES, "test", (certain, autoaugment.IMAGENET_SCALE))
    image = np.full([2, 2, 3], 60, np.uint8)  # is inverted by thresholds 0, 25 and 51 and not by 76
    levels = [result[0, 0, 0] for result in augmented(image, range(1000), "test")]
    assert set(levels) == {60, 195}
    assert np.mean(np.equal(levels, 195)) == pytest.approx(0.75 * 0.75 + 0.25 * 0.25, abs=0.05)


def test_only_the_drawn_operation_runs(monkeypatch):
    runs = []
    for name in ("equalize", "posterize", "contrast"):

        def counted(image, *_, name=name):
            return tf.ensure_shape(
                tf.numpy_function(lambda im: runs.append(name) or im, [image], tf.uint8), image.shape
            )

        monkeypatch.setattr(autoaugment, name, counted)
    policy = ((autoaugment.Step("Equalize", 1, 1), autoaugment.Step("Posterize", 0, 1)),)
    monkeypatch.setitem(autoaugment._POLICIES, "test", (policy, autoaugment.IMAGENET_SCALE))
    augmented(IMAGES["one level"], range(20), "test")
    assert runs == ["equalize"] * 20


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_randaugment_applies_its_number_of_layers(monkeypatch, layers):
    added = tf.constant(1, tf.uint8)
    monkeypatch.setattr(autoaugment, "apply_operation", lambda image, *_: image + added)
    for result in augmented(np.zeros([2, 2, 3], np.uint8), range(3), "randaugment", layers=layers):
        assert np.all(result == layers)


def test_randaugment_draws_all_operations_evenly(monkeypatch):
    monkeypatch.setattr(
        autoaugment, "apply_operation", lambda image, index, *_: tf.zeros_like(image) + tf.cast(index, tf.uint8)
    )
    drawn = [
        result[0, 0, 0] for result in augmented(np.zeros([1, 1, 3], np.uint8), range(1600), "randaugment", layers=1)
    ]
    counts = np.bincount(drawn, minlength=16)
    assert len(counts) == 16
    assert counts.min() > 60 and counts.max() < 140


def test_randaugment_beyond_magnitude_10_still_gives_images():
    image = IMAGES["flower, not square"]
    for name in autoaugment.OPERATIONS:
        assert operate(image, name, 30, [0.2, 0.5, 0.5], autoaugment.IMAGENET_SCALE).shape == image.shape


def test_unknown_policies_are_refused_by_name():
    with pytest.raises(UserError, match="policy is 'svhn', but must be 'randaugment' or one of 'imagenet', 'cifar10'"):
        autoaugment.apply(tf.zeros([4, 4, 3], tf.uint8), [0, 0], "svhn")


@pytest.mark.parametrize("fill", [None, 0])
def test_random_erasing_keeps_to_its_bounds(fill):
    image = np.full([60, 80, 3], 255, np.uint8)  # noise is 255 in all three channels once in 16 million pixels
    ds = tf.data.Dataset.range(400)
    ds = ds.map(lambda i: operations.random_erasing(image, tf.stack([i, i]), probability=0.5, fill=fill))
    boxes = []
    for result in ds.as_numpy_iterator():
        rows, columns = np.nonzero(np.any(result != 255, -1))
        if len(rows):
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert len(rows) == height * width, "the erased pixels are no rectangle"
            boxes.append((height, width, rows.min(), columns.min()))
    assert len(boxes) == pytest.approx(200, abs=40)
    height, width, top, left = np.array(boxes, float).T
    assert np.all((height + 0.5) * (width + 0.5) >= 0.02 * 60 * 80)
    assert np.all((height - 0.5) * (width - 0.5) <= 0.4 * 60 * 80)
    assert np.ptp(height * width) > 0.3 * 60 * 80
    assert np.all((height + 0.5) / (width - 0.5) >= 0.3) and np.all((height - 0.5) / (width + 0.5) <= 1 / 0.3)
    assert top.min() < 3 and left.min() < 3
    assert (top + height).max() > 57 and (left + width).max() > 77


def test_random_erasing_at_probability_0_or_without_a_box_that_fits_changes_nothing():
    image = IMAGES["flower, not square"]
    np.testing.assert_array_equal(operations.random_erasing(image, [0, 1], probability=0), image)
    np.testing.assert_array_equal(operations.random_erasing(image, [0, 1], probability=1, area=(2, 3)), image)
    first, again, other = (operations.random_erasing(image, [0, i], probability=1) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
