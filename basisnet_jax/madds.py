"""Multiply-adds, item by item: every convolution and linear layer, the coefficient head and the mixing of kernels.

The count is exact and of the arithmetic that the paper counts: a convolution costs output pixels x window x input
channels of its group x output channels; mixing costs N multiply-adds for each weight of each mixed kernel. Biases,
batch norm, activations, pooling, resizing and additions are left out, as in the MobileNet papers.
"""

import collections
import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import jax
from flax import nnx

from basisnet_jax import baselines, basis, models, preprocess
from basisnet_jax.basisnet import BasisNet
from basisnet_jax.ops.platforms import platform


class Item(NamedTuple):
    """One row of the table. `madds` is for one image; `params` of the mixing rows belong to the layer that mixes."""

    name: str
    stage: str  # "preview", "coefficients", "specialist" or, for a model without a preview, "network"
    kind: str  # "convolution", "depthwise", "linear" or "mixing"
    madds: int
    params: int
    path: str = ""  # of a layer that has bases: how it is executed on `platforms.platform()`, see `basis.BasisConv`


def of(config, images: int = 1) -> list[Item]:
    """The items of a config's model, as `count` gives them; no array of it is made."""
    return count(models.create_abstract(config), preprocess.of(config).shape, images)


def count(model: nnx.Module, image_shape: tuple[int, int, int], images: int = 1) -> list[Item]:
    """The items of one forward pass on one image of shape (H, W, C), in the order in which the layers run.

    The model is only traced: nothing is computed. Layers other than `nnx.Conv`, `nnx.Linear` and their basis forms do
    not count, so a network that multiplies matrices by itself is undercounted. Paths are those that a device takes with
    so many images at once.
    """
    model = nnx.clone(model)
    model.eval()
    names: dict[int, str] = {}
    items: list[Item] = []

    def record(layer, inputs, outputs):
        mixes = isinstance(layer, basis.BasisLayer)
        plain = layer.layer if mixes else layer
        name = names[id(layer)]
        kernel_shape = plain.kernel.shape[1:] if mixes else plain.kernel.shape
        weights = math.prod(kernel_shape)
        positions = math.prod(outputs.shape[:-1]) if isinstance(plain, nnx.Conv) else math.prod(inputs.shape[:-1])
        if isinstance(plain, nnx.Linear):
            kind = "linear"
        else:
            kind = "depthwise" if plain.feature_group_count == plain.in_features > 1 else "convolution"
        params = plain.kernel.size + (0 if plain.bias is None else plain.bias.size)
        stage = _stage(model, name)
        if mixes:
            items.append(Item(name, stage, "mixing", layer.num_bases * weights, 0))
        path = layer.path_for(inputs.update(shape=(images, *inputs.shape[1:]))) if mixes else ""
        items.append(Item(name, stage, kind, positions * weights, params, path))

    def run(model, image):
        names.update({id(module): "/".join(map(str, path)) for path, module in nnx.iter_modules(model)})
        return model(image)

    with _recorded(record):
        nnx.eval_shape(run, model, jax.ShapeDtypeStruct((1, *image_shape), "float32"))
    return items


def total(items: list[Item], stages: tuple[str, ...] | None = None) -> int:
    """The sum over all items, or over those of some stages."""
    return sum(item.madds for item in items if stages is None or item.stage in stages)


def preview_only(items: list[Item]) -> int:
    """What an image costs that stops at the preview: its first prediction, without the coefficients."""
    return total(items, ("preview",))


def with_early_termination(items: list[Item], share: float) -> float:
    """Mean multiply-adds per image if this share of the images stops at the preview."""
    return share * preview_only(items) + (1 - share) * total(items)


def summary(items: list[Item]) -> dict[str, int]:
    """Multiply-adds by part: preview, coefficients, mixing and the specialist's layers; or network."""
    parts: dict[str, int] = {}
    for item in items:
        part = "mixing" if item.kind == "mixing" else item.stage
        parts[part] = parts.get(part, 0) + item.madds
    return parts


def _stage(model: nnx.Module, name: str) -> str:
    if isinstance(model, baselines.Routed):
        return "coefficients" if name.endswith(("/router", "/squeeze")) else "network"
    if not isinstance(model, BasisNet):
        return "network"
    return {"coefficient_head": "coefficients"}.get(name.split("/")[0], name.split("/")[0])


@contextlib.contextmanager
def _recorded(record) -> Iterator[None]:
    """Calls `record(layer, inputs, outputs)` after every call of a counted layer."""

    def recording(call):
        def wrapped(self, inputs, *args, **kwargs):
            outputs = call(self, inputs, *args, **kwargs)
            record(self, inputs, outputs)
            return outputs

        return wrapped

    with contextlib.ExitStack() as stack:
        for kind in (nnx.Conv, nnx.Linear, basis.BasisConv, basis.BasisLinear):
            stack.enter_context(mock.patch.object(kind, "__call__", recording(kind.__call__)))
        yield


def execution(items: list[Item]) -> str:
    """How many of the layers that have bases take which path: one line, empty for a network without bases."""
    counts = collections.Counter(item.path for item in items if item.path)
    return ", ".join(f"{path} {count}" for path, count in counts.most_common())


def as_json(items: list[Item], share: float) -> dict:
    """The count as data; "mean_with_early_termination" is None for a network without a preview."""
    mean = with_early_termination(items, share) if preview_only(items) else None
    return {
        "total": total(items),
        "mean_with_early_termination": mean,
        "share_terminated": share if preview_only(items) else None,
        "items": [{name: getattr(item, name) for name in Item._fields if name != "path"} for item in items],
        "paths": {item.name: item.path for item in items if item.path},
    }


def table(items: list[Item], share: float) -> str:
    """The count as text: every item, then the sum of each part, then the total and how layers with bases are run."""
    width = max(len(item.name) for item in items)
    lines = [f"{'layer':<{width}}  {'stage':<12} {'kind':<12} {'MAdds':>12} {'params':>12}  path"]
    lines += [f"{i.name:<{width}}  {i.stage:<12} {i.kind:<12} {i.madds:>12,} {i.params:>12,}  {i.path}" for i in items]
    lines = [line.rstrip() for line in lines]
    lines += ["", *(f"{part:<14} {cost / 1e6:>9.2f}M" for part, cost in summary(items).items())]
    lines.append(f"{'total':<14} {total(items) / 1e6:>9.2f}M")
    if preview_only(items):
        mean = with_early_termination(items, share) / 1e6
        lines.append(f"on average    {mean:>9.2f}M if {share:.0%} of the images stop at the preview")
    if paths := execution(items):
        lines.append(f"paths on {platform()}: {paths}")
    return "\n".join(lines)
