"""Image files as evaluation sees them: what a user's paths mean, read by threads."""

import itertools
import os
import pathlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from basisnet_jax.data import folder, jpeg_warnings, pipeline, walk
from basisnet_jax.errors import UserError, one_line
from basisnet_jax.preprocess import Preprocess

CHUNK = 64  # images that are read at once


def list_files(inputs: list[str]) -> list[str]:
    """The inputs with "-" as what stdin lists, and folders as their image files.

    What cannot be read stays, and so does a folder without images: `read` says what is wrong with it.
    """
    listed = (listed_on_stdin() if given == "-" else [given] for given in inputs)
    paths = []
    for given in filter(None, itertools.chain.from_iterable(listed)):
        found = walk.contents(pathlib.Path(given)) if os.path.isdir(given) else walk.Contents()
        paths += [str(path) for path in sorted([*found.images, *found.bad])] or [given]
    return paths


def listed_on_stdin() -> list[str]:
    """The lines, as bytes: a file's name may be no UTF-8."""
    return [os.fsdecode(line) for line in sys.stdin.buffer.read().splitlines()] if sys.stdin else []


def read(seen: Preprocess, paths: list[str]) -> Iterator[tuple[str, np.ndarray | Exception]]:
    """Every path, in order, with the image as evaluation sees it, uint8 [H, W, C], or with what is wrong.

    A damaged JPEG that decodes is named on stderr.
    """

    def read_one(path):
        try:
            if os.path.isdir(path):
                os.listdir(path)  # raises what keeps it from being listed, if that is why it stands here
                raise ValueError("a folder without images")
            return path, pipeline.evaluation_image(seen, folder.encode(pathlib.Path(path)))
        except UserError:
            raise
        except Exception as error:  # whatever Pillow or TensorFlow makes of a broken file
            return path, error

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for start in range(0, len(paths), CHUNK):
            chunk = paths[start : start + CHUNK]
            with jpeg_warnings.caught() as of_any:
                reads = list(pool.map(read_one, chunk))
            if not of_any:
                yield from reads
                continue
            for path in chunk:  # once more, alone: which one was it?
                with jpeg_warnings.caught() as warnings:
                    _, image = read_one(path)
                if warnings and not isinstance(image, Exception):
                    print(f"basisnet: {one_line(path)} is damaged, but decodes ({warnings[0]})", file=sys.stderr)
                yield path, image
    finally:
        pool.shutdown(cancel_futures=True)
