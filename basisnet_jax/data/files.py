"""Image files as evaluation sees them: what a user's paths mean, read ahead by threads."""

import itertools
import os
import pathlib
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from basisnet_jax.data import folder, pipeline
from basisnet_jax.errors import UserError
from basisnet_jax.preprocess import Preprocess

READ_AHEAD = 128  # images


def list_files(inputs: list[str]) -> list[str]:
    """The inputs with "-" as what stdin lists, and folders as their image files; one without any stays, to be told."""
    listed = (sys.stdin.read().splitlines() if given == "-" else [given] for given in inputs)
    paths = []
    for given in filter(None, itertools.chain.from_iterable(listed)):
        files = folder.image_files(pathlib.Path(given)) if os.path.isdir(given) else []
        paths += map(str, files) if files else [given]
    return paths


def read(seen: Preprocess, paths: list[str]) -> Iterator[tuple[str, np.ndarray | Exception]]:
    """Every path, in order, with the image as evaluation sees it, uint8 [H, W, C], or with what is wrong."""

    def read_one(path):
        try:
            return path, pipeline.evaluation_image(seen, folder.encode(pathlib.Path(path)))
        except UserError:
            raise
        except Exception as error:  # whatever Pillow or TensorFlow makes of a broken file
            return path, error

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        reads = (pool.submit(read_one, path) for path in paths)
        ahead = deque(itertools.islice(reads, READ_AHEAD))
        while ahead:
            yield ahead.popleft().result()
            ahead.extend(itertools.islice(reads, 1))
    finally:
        pool.shutdown(cancel_futures=True)
