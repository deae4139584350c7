"""Files of weights: from any container to its arrays by name. No code that a file may hold is run."""

import argparse
import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping

import ml_dtypes  # noqa: F401 -- numpy then knows bfloat16, which safetensors asks for
import numpy as np
import safetensors.numpy

from basisnet_jax.errors import UserError

DEPTH = 6  # of dicts in dicts; a file can hold a dict that holds itself


def read(path: str) -> dict[str, np.ndarray]:
    """The arrays of a safetensors or PyTorch file (extra `torch`), told apart by their first bytes.

    The keys of nested dicts are joined with dots, as in "state_dict.module.conv_stem.weight". Floating-point tensors of
    PyTorch become float32 or float64.

    Raises:
      UserError: the file cannot be read, is of another format, or holds no arrays under names.
    """
    if os.path.isdir(path):
        raise UserError(f"weights {path!r} is a folder, expected a file")
    if not os.path.exists(path):
        raise UserError(f"weights file {path!r} does not exist")
    try:
        with open(path, "rb") as file:
            start = file.read(9)
        if start[8:] == b"{":  # after the length of this JSON
            arrays = safetensors.numpy.load_file(path)
        elif start.startswith((b"PK", b"\x80")):  # a zip file, or before PyTorch 1.6 a pickle
            arrays = dict(_flat(_load(path)))
        else:
            raise UserError(f"{path} is not a readable weights file: it is neither safetensors nor PyTorch")
    except UserError:
        raise
    except Exception as error:  # whatever the two libraries make of a damaged file
        raise UserError(f"{path} is not a readable weights file: {_first_sentence(error)}") from error
    if not arrays:
        raise UserError(f"{path} holds no arrays, expected those of a network by their names")
    return arrays


def _load(path: str) -> Mapping:
    try:
        import torch
    except ImportError:
        raise UserError("PyTorch files need the extra: pip install 'basisnet_jax[torch]'") from None
    try:
        # Training scripts keep their arguments, which are plain data, beside the weights. Given a path instead of a
        # file, PyTorch goes by its name.
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            open(path, "rb") as file,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # PyTorch's about itself, at files of its earlier releases
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's own message recommends to run the code in the file.
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it holds {found[1]!r} besides tensors" if found else "it is damaged, or holds more than tensors"
        raise UserError(f"{path} is not a readable weights file: {what}; save model.state_dict() alone") from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, expected a dict such as model.state_dict()")
    return loaded


def _flat(tree: Mapping, prefix: str = "", depth: int = DEPTH) -> Iterator[tuple[str, np.ndarray]]:
    import torch

    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and depth:
            yield from _flat(value, f"{name}.", depth - 1)
        elif isinstance(value, torch.Tensor):
            if value.is_quantized or value.is_meta or value.layout != torch.strided:
                raise UserError(f"tensor {name!r} of the weights is quantized, sparse or empty, expected a plain one")
            small = value.is_floating_point() and value.itemsize < 4  # numpy has no bfloat16
            yield name, (value.detach().float() if small else value.detach()).numpy()


def _first_sentence(error: Exception) -> str:
    sentence = re.split(r"[.]\s|\n", str(error).strip())[0]
    return f"{type(error).__name__}: {sentence[:200]}"
