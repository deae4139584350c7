"""The letters drawn with Debian's fonts: what is split, what is drawn, and what is said where fonts are missing."""

import os

import numpy as np
import pytest

from basisnet_jax.data import glyphs
from basisnet_jax.errors import UserError

FONTS = {split: {path for _, path in glyphs.paths(files)} for split, files in glyphs.FONTS.items()}
with_fonts = pytest.mark.skipif(
    not all(os.path.exists(path) for paths in FONTS.values() for path in paths),
    reason="needs the font packages that basisnet_jax/data/glyphs.py names",
)


def test_no_font_and_no_family_is_in_two_splits():
    families = {split: {os.path.basename(path).split("-")[0] for path in paths} for split, paths in FONTS.items()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not FONTS[one] & FONTS[other]
        assert not families[one] & families[other]


def test_classes_are_letters_each_once():
    assert len(glyphs.LETTERS) == len(set(glyphs.LETTERS)) == 157
    assert len(glyphs.SCRIPTS) == 5


def test_missing_fonts_are_named_by_package(monkeypatch, tmp_path):
    monkeypatch.setattr(glyphs, "FOLDER", str(tmp_path))
    with pytest.raises(UserError, match=r"apt-get install culmus fonts-bpg-georgian .* fonts-vollkorn"):
        glyphs.check_fonts()


@with_fonts
def test_every_letter_has_several_fonts_in_every_split():
    assert min(len(glyphs.fonts_of_letters()[split, letter]) for split in FONTS for letter in glyphs.LETTERS) >= 3


@with_fonts
def test_hardly_a_letter_is_the_same_in_two_splits():
    """Fonts borrow from each other, more than their names tell. A bar or a ring may be the same by chance."""
    shapes, alike, total = {}, 0, 0
    for (split, letter), fonts in glyphs.fonts_of_letters().items():
        for path in fonts:
            mask = glyphs.truetype(path, 40).getmask(letter)
            other = shapes.setdefault((letter, mask.size, bytes(mask)), split)
            alike, total = alike + (other != split), total + 1
    assert total > 5000
    assert alike < 0.001 * total, (alike, total)


@with_fonts
def test_an_image_follows_from_its_split_and_index():
    images = {(split, i): glyphs.draw(split, i) for split in ("train", "test") for i in (0, 1, 157)}
    for (split, i), image in images.items():
        assert (image.dtype, image.shape) == (np.uint8, (32, 32, 1))
        np.testing.assert_array_equal(glyphs.draw(split, i), image)
    assert len({image.tobytes() for image in images.values()}) == len(images)


@with_fonts
def test_every_letter_is_drawn_inside_the_image():
    """The border is paper, noise aside, and something else is ink."""
    for i in range(len(glyphs.LETTERS)):
        image = glyphs.draw("test", i)[..., 0].astype(float)
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        noise = border.std()
        assert np.abs(image - np.median(border)).max() > 3 * noise + 10, glyphs.LETTERS[i]
        assert (np.abs(border - np.median(border)) < 60).mean() > 0.8, glyphs.LETTERS[i]
