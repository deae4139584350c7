"""Prepares TFDS's `fashion_mnist` from the four IDX files on this machine, without the internet.

    python experiments/fashion_mnist/prepare.py [--source=FOLDER] [--data_dir=FOLDER]

Debian's package `dataset-fashion-mnist` brings the files; they unpack to the very bytes that TFDS downloads. TFDS's own
builder reads them, so the data set is the one it would make itself. Takes half a minute and leaves 38 MB.
"""

import argparse
import contextlib
import gzip
import pathlib
import struct
import sys
import tempfile

import tensorflow_datasets as tfds

from basisnet_jax.errors import UserError

SOURCE = "/usr/share/datasets/fashion-mnist"
EXAMPLES = {"train": 60_000, "test": 10_000}
FIRST_LABELS = {"train": (9, 0, 0, 3, 0), "test": (9, 2, 1, 1, 6)}  # so that MNIST, whose files are named alike, is not
FILES = {"train": "train", "test": "t10k"}  # how the names of a split's two files begin


def prepare(source: str, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """Writes the data set into `data_dir` (None: where TFDS keeps its data sets), unless it is there already.

    Raises:
      UserError: a file of `source` is missing or is not what its name says.
    """
    builder = tfds.builder("fashion_mnist", data_dir=data_dir)
    if builder.data_path.exists():
        print(f"{builder.data_path} is there already")
        return builder
    paths = check(pathlib.Path(source))
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(sys.stderr):
        # Under plain names, whatever characters are in those of `source`: the builder joins them as it does URLs.
        local = pathlib.Path(downloads, "files")
        local.mkdir()
        for path in paths:
            (local / path.name).symlink_to(path.resolve())
        builder.URL = f"{local}/"  # a path where it expects a URL: the download manager copies instead
        builder.download_and_prepare(download_dir=downloads, download_config=config)
    counts = {split: builder.info.splits[split].num_examples for split in EXAMPLES}
    if counts != EXAMPLES:
        raise UserError(f"{builder.data_path} has {counts} examples, expected {EXAMPLES}")
    print(f"{builder.data_path}: {', '.join(f'{count} {split}' for split, count in counts.items())} images")
    return builder


def check(source: pathlib.Path) -> list[pathlib.Path]:
    """The four files, after a look at their headers (Y. LeCun, the MNIST database: "the IDX file format")."""
    paths = []
    for split, count in EXAMPLES.items():
        for kind, header in (("images-idx3", (2051, count, 28, 28)), ("labels-idx1", (2049, count))):
            path = source / f"{FILES[split]}-{kind}-ubyte.gz"
            if not path.is_file():
                raise UserError(f"{path} does not exist; install Debian's dataset-fashion-mnist, or give --source")
            try:
                with gzip.open(path) as file:
                    found = struct.unpack(f">{len(header)}i", file.read(4 * len(header)))
                    labels = tuple(file.read(5)) if kind == "labels-idx1" else FIRST_LABELS[split]
            except (OSError, EOFError, struct.error) as error:
                raise UserError(f"{path} is no gzipped IDX file ({error})") from error
            if found != header or labels != FIRST_LABELS[split]:
                what = f"header {found}, labels {labels}"
                expected = f"header {header}, labels {FIRST_LABELS[split]}"
                raise UserError(f"{path} is not Fashion-MNIST's: {what}, expected {expected}")
            paths.append(path)
    return paths


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=SOURCE, help=f"the folder of the IDX files; default {SOURCE}")
    parser.add_argument("--data_dir", help="where the data set goes; default where TFDS keeps its data sets")
    flags = parser.parse_args(argv)
    try:
        prepare(flags.source, flags.data_dir)
    except (UserError, OSError) as error:  # OSError: of --data_dir, a full disk and the like
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
