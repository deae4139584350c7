"""ImageNet's 1,000 classes by names that people read: `imagenet_classes.txt`, one a line, in the order of the labels.

The names are torchvision's, the first lemma of each WordNet synset; where two would be the same or differ in case
only, they are told apart: "crane (bird)" and "crane", "Cardigan Welsh corgi" and "cardigan".
"""

import importlib.resources
import re


def class_names() -> list[str]:
    """The 1,000 names by label."""
    return (importlib.resources.files("basisnet_jax.data") / "imagenet_classes.txt").read_text().splitlines()


def readable(names: list[str]) -> list[str]:
    """Readable names where `names` are the ids of all 1,000 synsets, such as "n01440764"; other names as they are.

    ImageNet's labels are the ranks of the ids, but not every TFDS set of these classes has them in that order.
    """
    if len(names) != 1000 or not all(re.fullmatch(r"n\d{8}", name) for name in names):
        return names
    by_id = dict(zip(sorted(names), class_names(), strict=True))
    return [by_id[name] for name in names]
