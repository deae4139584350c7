"""scikit-learn's handwritten digits as a TFDS dataset: real data that needs no download.

1,797 grey images of 8x8 pixels, ten classes (Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI
Machine Learning Repository, 1998; scikit-learn ships its test part). Importing this module registers the name
`digits` with TFDS.
"""

import numpy as np
import sklearn.datasets
import tensorflow_datasets as tfds


class Digits(tfds.core.GeneratorBasedBuilder):
    """Splits `train` (1,077), `validation` (360) and `test` (360); see `split_indices`. Never tune on `test`."""

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. Stated here because looking for a file of checksums would make TFDS 4.9.10 import
    # importlib_resources, which it does not declare as a dependency.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits, 8x8 grey, from scikit-learn's load_digits.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8, encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                    "id": tfds.features.Scalar(np.int64, doc="Position in load_digits()."),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html",
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        digits = sklearn.datasets.load_digits()
        return {
            name: self._generate_examples(digits, indices) for name, indices in split_indices(digits.target).items()
        }

    def _generate_examples(self, digits, indices):
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # 0..16 -> 0..255
        for index in indices.tolist():
            yield index, {"image": images[index], "label": int(digits.target[index]), "id": index}


def split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """The fixed, class-balanced split: positions of the examples of each part.

    One permutation, `numpy.random.RandomState(0).permutation` (a stream that NumPy keeps frozen), is sorted stably by
    label, so that classes lie one after another, each in random order. Then cards are dealt: every fifth example is
    for testing, and of the rest every fourth for validation. Each class is thereby divided in the same proportion,
    to within one example.

    Args:
      labels: int [n], the class of each example.

    Returns:
      int arrays under `train`, `validation` and `test`; together they hold each of 0..n-1 once.
    """
    permutation = np.random.RandomState(0).permutation(len(labels))
    by_class = permutation[np.argsort(labels[permutation], kind="stable")]
    position = np.arange(len(by_class))
    test, rest = by_class[position % 5 == 0], by_class[position % 5 != 0]
    position = np.arange(len(rest))
    return {"train": rest[position % 4 != 0], "validation": rest[position % 4 == 0], "test": test}
