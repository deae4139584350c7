"""Letters of five scripts as a TFDS dataset: many classes, little detail, and test fonts that training has never seen.

    apt-get install --no-install-recommends fonts-dejavu fonts-freefont-ttf fonts-lato fonts-liberation \
      fonts-linuxlibertine fonts-noto-core fonts-open-sans fonts-roboto-unhinted fonts-cantarell fonts-jetbrains-mono \
      fonts-tuffy fonts-ebgaramond fonts-firacode fonts-inter fonts-oldstandard fonts-play fonts-vollkorn culmus \
      fonts-bpg-georgian

157 classes of Latin, Greek, Cyrillic, Hebrew and Georgian letters in 32x32 grey pixels: 100,480 images for training,
9,420 for validation, 9,420 for testing. Of letters that look alike, such as A in three scripts or c and C, only one is
drawn. No font, and no font of the same design, is in two splits. Each image is one letter in an upright font of any
weight, drawn three times as large, then turned, slanted, scaled, moved, reduced and blurred, in two shades of grey,
with noise. An image depends on its split, its index, and the versions of the fonts, Pillow and NumPy. Importing this
module registers the name `glyphs` with TFDS.
"""

import functools
import os
import zlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from basisnet_jax.errors import UserError

SIZE = 32  # pixels
OVERSAMPLING = 3
SCRIPTS = {
    "latin": "ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghijmnqrtyÆæŒœÞßðØ",
    "greek": "ΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπςστφψω",
    "cyrillic": "БДЖЗИЙЦЧШЩЪЫЬЭЮЯЄЂЉЊЏб",
    "hebrew": "אבגדהוזחטכלמנסעפצקרשתךםףץ",
    "georgian": "".join(map(chr, range(0x10D0, 0x10F1))),
}
LETTERS = "".join(SCRIPTS.values())
EXAMPLES = {"train": 640, "validation": 60, "test": 60}  # of each class

FOLDER = "/usr/share/fonts"
ONLY = {"culmus": "hebrew", "fonts-bpg-georgian": "georgian"}  # their Latin letters are those of other fonts
# Files by split, Debian package and folder. Upright only: some letters have another form in italics.
FONTS = {
    "train": {
        ("fonts-dejavu", "truetype/dejavu/DejaVu"): (
            "Sans.ttf SansCondensed-Bold.ttf SansMono.ttf SansMono-Bold.ttf Serif.ttf SerifCondensed-Bold.ttf"
        ),
        ("fonts-freefont-ttf", "truetype/freefont/Free"): (
            "Mono.ttf MonoBold.ttf Sans.ttf SansBold.ttf Serif.ttf SerifBold.ttf"
        ),
        ("fonts-lato", "truetype/lato/Lato-"): "Black.ttf Light.ttf Regular.ttf",
        ("fonts-liberation", "truetype/liberation/Liberation"): (
            "Mono-Regular.ttf Sans-Bold.ttf Sans-Regular.ttf SansNarrow-Regular.ttf Serif-Bold.ttf Serif-Regular.ttf"
        ),
        ("fonts-linuxlibertine", "opentype/linux-libertine/Lin"): (
            "Biolinum_R.otf Biolinum_RB.otf Libertine_R.otf Libertine_RB.otf"
        ),
        ("fonts-noto-core", "truetype/noto/Noto"): (
            "Sans-Bold.ttf Sans-Regular.ttf SansGeorgian-Bold.ttf SansGeorgian-Regular.ttf SansHebrew-Bold.ttf "
            "SansHebrew-Regular.ttf Serif-Bold.ttf Serif-Regular.ttf SerifGeorgian-Bold.ttf SerifGeorgian-Regular.ttf "
            "SerifHebrew-Bold.ttf SerifHebrew-Regular.ttf"
        ),
        ("fonts-open-sans", "truetype/open-sans/OpenSans-"): "ExtraBold.ttf Light.ttf Regular.ttf",
        ("fonts-roboto-unhinted", "truetype/roboto/unhinted/RobotoTTF/Roboto-"): "Black.ttf Light.ttf Regular.ttf",
        ("culmus", "truetype/culmus/"): (
            "FrankRuehlCLM-Bold.ttf FrankRuehlCLM-Medium.ttf KeterYG-Bold.ttf KeterYG-Medium.ttf MiriamCLM-Bold.ttf "
            "MiriamCLM-Book.ttf MiriamMonoCLM-Bold.ttf MiriamMonoCLM-Book.ttf NachlieliCLM-Bold.otf "
            "NachlieliCLM-Light.otf"
        ),
        ("fonts-bpg-georgian", "truetype/fonts-bpg-georgian/BPG_"): (
            "Algeti_GPL&GNU.ttf Chveulebrivi_GPL&GNU.ttf Courier_GPL&GNU.ttf Elite_GPL&GNU.ttf Glaho_GPL&GNU.ttf "
            "Nateli_GPL&GNU.ttf Sans_Modern_GPL&GNU.ttf Serif_Modern_GPL&GNU.ttf"
        ),
    },
    "validation": {
        ("fonts-cantarell", "opentype/cantarell/Cantarell-"): "Bold.otf Light.otf Regular.otf",
        ("fonts-jetbrains-mono", "truetype/jetbrains-mono/JetBrainsMono-"): "Bold.ttf Light.ttf Regular.ttf",
        ("fonts-tuffy", "truetype/tuffy/"): "Tuffy.ttf Tuffy_Bold.ttf",
        ("culmus", "truetype/culmus/"): (
            "HadasimCLM-Bold.ttf HadasimCLM-Regular.ttf ShofarDemi-Bold.ttf ShofarRegular.ttf"
        ),
        ("fonts-bpg-georgian", "truetype/fonts-bpg-georgian/BPG_"): (
            "DedEena_Block_GPL&GNU.ttf Excelsior_GPL&GNU.ttf Nino_Medium_GPL&GNU.ttf"
        ),
    },
    "test": {
        ("fonts-ebgaramond", "opentype/ebgaramond/EBGaramond12-"): "Bold.otf Regular.otf",
        ("fonts-firacode", "truetype/firacode/FiraCode-"): "Bold.ttf Light.ttf Regular.ttf",
        ("fonts-inter", "opentype/inter/Inter-"): "Black.otf Light.otf Regular.otf",
        ("fonts-oldstandard", "truetype/fonts-oldstandard/OldStandard-"): "Bold.ttf Regular.ttf",
        ("fonts-play", "truetype/play/Play-"): "Bold.ttf Regular.ttf",
        ("fonts-vollkorn", "truetype/vollkorn/Vollkorn-"): "Black.ttf Medium.ttf Regular.ttf",
        ("culmus", "truetype/culmus/"): (
            "DavidCLM-Bold.otf DavidCLM-Medium.otf SimpleCLM-Bold.ttf SimpleCLM-Medium.ttf"
        ),
        ("fonts-bpg-georgian", "truetype/fonts-bpg-georgian/BPG_"): (
            "Gorda_GNU-GPL.ttf Ingiri_GPL&GNU.ttf Mrgvlovani_GPL&GNU.ttf Sans_GPL&GNU.ttf Serif_GPL&GNU.ttf"
        ),
    },
}


class Glyphs(tfds.core.GeneratorBasedBuilder):
    """Splits `train`, `validation` and `test`, of different fonts; every class has equally many images in each."""

    VERSION = tfds.core.Version("1.2.0")  # images of 1.1.0 and before depended on whether FriBiDi was installed
    url_infos = None  # nothing is downloaded; see digits.py

    def _info(self) -> tfds.core.DatasetInfo:
        names = [f"{script} {letter}" for script, letters in SCRIPTS.items() for letter in letters]
        return tfds.core.DatasetInfo(
            builder=self,
            description="Letters of five scripts, 32x32 grey, drawn with Debian's fonts.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 1), dtype=np.uint8, encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=names),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        check_fonts()
        return {split: self._generate_examples(split) for split in FONTS}

    def _generate_examples(self, split):
        for index in range(EXAMPLES[split] * len(LETTERS)):
            yield index, {"image": draw(split, index), "label": index % len(LETTERS)}


def check_fonts() -> None:
    """Raises UserError that names the packages of fonts that are not there."""
    missing = [package for files in FONTS.values() for package, path in paths(files) if not os.path.exists(path)]
    if missing:
        raise UserError(f"the fonts of glyphs are missing: apt-get install {' '.join(sorted(set(missing)))}")


def paths(files: dict[tuple[str, str], str]) -> list[tuple[str, str]]:
    """(package, path) of every font file of a split."""
    return [
        (package, f"{FOLDER}/{prefix}{name}") for (package, prefix), names in files.items() for name in names.split()
    ]


@functools.cache
def fonts_of_letters() -> dict[tuple[str, str], list[str]]:
    """The font files that have a letter, by (split, letter)."""
    from matplotlib.ft2font import FT2Font

    found = {}
    for split, files in FONTS.items():
        for package, path in paths(files):
            letters = SCRIPTS[ONLY[package]] if package in ONLY else LETTERS
            for letter in sorted(set(letters) & set(map(chr, FT2Font(path).get_charmap()))):
                found.setdefault((split, letter), []).append(path)
    return found


@functools.cache  # to open a font takes longer than to draw a letter
def truetype(path: str, size: int) -> ImageFont.FreeTypeFont:
    # Pillow's other layout is there on machines that have FriBiDi only, and moves some letters a little.
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def draw(split: str, index: int) -> np.ndarray:
    """Image number `index` of a split, of the letter `index % len(LETTERS)`: uint8 [SIZE, SIZE, 1]."""
    letter = LETTERS[index % len(LETTERS)]
    fonts = fonts_of_letters()[split, letter]
    random = np.random.Generator(np.random.Philox([zlib.crc32(split.encode()), index]))
    side = SIZE * OVERSAMPLING
    font = truetype(fonts[random.integers(len(fonts))], round(side * random.uniform(0.6, 0.85)))
    image = Image.new("L", (side, side), 0)
    left, top, right, bottom = font.getbbox(letter)
    ImageDraw.Draw(image).text(((side - left - right) / 2, (side - top - bottom) / 2), letter, fill=255, font=font)
    # From the new pixel to the old one: turned, slanted, each side scaled, moved, all around the centre.
    angle, slant = random.uniform(-0.2, 0.2), random.uniform(-0.25, 0.25)
    scale = random.uniform(0.85, 1.2, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, slant], [0, 1]]) @ np.diag(scale)
    offset = side / 2 - matrix @ (side / 2 + random.uniform(-0.1, 0.1, 2) * side)
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    image = image.transform((side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    image = image.reduce(OVERSAMPLING).filter(ImageFilter.GaussianBlur(random.uniform(0, 0.8)))
    paper, ink = random.uniform(0.6, 1.0), random.uniform(0.0, 0.4)
    if random.uniform() < 0.5:
        paper, ink = ink, paper
    grey = paper + (ink - paper) * np.asarray(image, np.float32)[..., None] / 255
    grey += random.normal(0, random.uniform(0.02, 0.12), grey.shape)
    return np.round(255 * grey.clip(0, 1)).astype(np.uint8)
