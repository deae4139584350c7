"""Makes a small folder of class folders of real JPEGs: random crops of twelve photographs, one class each.

    python experiments/photographs.py --output=photographs [--crops=60] [--seed=0]
    basisnet train --config=configs/folder.py --config.dataset=folder:photographs --workdir=runs/photographs

The photographs are those inside scikit-image (extra `torch`) and scikit-learn: nothing is downloaded. A crop is a
square of 0.3 to 0.8 of the shorter side. It is an easy task, there to try the pipeline and the full-size networks.
"""

import argparse
import pathlib

import numpy as np
import PIL.Image
import skimage.data
import sklearn.datasets

NAMES = (
    *("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field"),
    *("immunohistochemistry", "retina", "rocket"),
)


def photographs() -> dict[str, np.ndarray]:
    """uint8 [H, W] or [H, W, 3] by class name."""
    china, flower = sklearn.datasets.load_sample_images().images
    return {**{name: getattr(skimage.data, name)() for name in NAMES}, "china": china, "flower": flower}


def crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    side = int(min(image.shape[:2]) * rng.uniform(0.3, 0.8))
    top, left = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
    return image[top : top + side, left : left + side]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--crops", type=int, default=60, help="of each photograph")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    images = photographs()
    for name, image in images.items():
        folder = args.output / name
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(args.crops):
            PIL.Image.fromarray(crop(image, rng)).save(folder / f"{i:03}.jpg", quality=90)
    print(f"{len(images) * args.crops} images of {len(images)} classes in {args.output}")


if __name__ == "__main__":
    main()
