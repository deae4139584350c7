"""Multiply-adds, item by item: every convolution and linear layer, the coefficient head and the mixing of kernels.

The count is exact and of the arithmetic that the paper counts: a convolution costs output pixels x window x input
channels of its group x output channels; mixing costs N multiply-adds for each weight of each mixed kernel. Biases,
batch norm, activations, pooling, resizing and additions are left out, as in the MobileNet papers.

With `top_k` the count is of a mixture that reads k of the N bases: k multiply-adds a weight, and none where softmax
selects one basis, whose coefficient is 1. That is what the arithmetic needs. It is not yet what runs: all paths and
exports still read all bases and multiply those left out by zero. `basisnet plan` compiles what runs.
"""

import collections
import contextlib
import math
import re
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import jax
from flax import nnx

from basisnet_jax import baselines, basis, calling, coefficients, layers
from basisnet_jax.basisnet import BasisNet
from basisnet_jax.ops.platforms import platform


class Item(NamedTuple):
    """One row of the table. `madds` is for one image; `params` of the mixing rows belong to the layer that mixes."""

    name: str
    stage: str  # "preview", "coefficients", "specialist" or, for a model without a preview, "network"
    kind: str  # "convolution", "depthwise", "transposed", "linear" or "mixing"
    madds: int
    params: int
    path: str = ""  # of a layer that has bases: how it is executed on `platforms.platform()`, see layers.py


def count(model: nnx.Module, image_shape: tuple[int, int, int], images: int = 1) -> list[Item]:
    """The items of one forward pass on one image of shape (H, W, C), in the order in which the layers run.

    The model is only traced: nothing is computed. What counts are `nnx.Conv`, `ConvTranspose`, `Linear`,
    `LinearGeneral` and `Einsum` with what inherits their calls, and their basis forms; inside `nnx.scan` as often as it
    runs them. Other products, such as attention's of two activations, do not. Paths are those that a device takes with
    so many images at once.
    """
    model = nnx.clone(model)
    model.eval()
    for _, mixer in nnx.iter_modules(model):
        if isinstance(mixer, BasisNet | baselines.Unit):
            for layer in basis.basis_layers(mixer).values():
                layer.mixed_of_madds = _mixed(mixer)
    num_bases = {name: layer.num_bases for name, layer in basis.basis_layers(model).items()}
    for path, module in nnx.iter_modules(model):
        name = "/".join(map(str, path))
        module.name_of_madds = name.removesuffix("/layer") if name.removesuffix("/layer") in num_bases else name
    calls: list[list[Item]] = []

    def record(layer, inputs, outputs):
        name = getattr(layer, "name_of_madds", type(layer).__name__)
        stage = _stage(model, name)
        if isinstance(layer, basis.BasisLayer):
            seen = inputs.update(shape=(images, *inputs.shape[1:]))
            kernel, is_own = layer.layer.kernel, isinstance(layer, layers.BasisOther)  # which calls what is counted
            path = layer.path_for(seen)
            cost = kernel.size // layer.num_bases * getattr(layer, "mixed_of_madds", layer.num_bases)
            items = [Item(name, stage, "mixing", cost, 0, path if is_own else "")]
            return items if is_own else [*items, _item(layer.layer, name, stage, inputs, outputs, path=path)]
        return [_item(layer, name, stage, inputs, outputs, num_bases.get(name, 1))]

    graph, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((1, *image_shape), "float32")

    def run(state, image):
        model = nnx.merge(graph, state, copy=True)
        return model(image, **calling.in_mode(model, True))

    with _recorded(record, calls):
        program = jax.make_jaxpr(run)(state, image)
    times = _times(program.jaxpr)
    return [item._replace(madds=item.madds * times[i]) for i, items in enumerate(calls) if i in times for item in items]


def _mixed(mixer: BasisNet | baselines.Unit) -> int:
    """Multiply-adds for each weight that it mixes."""
    return 0 if coefficients.selects(mixer.activation, mixer.top_k) else mixer.top_k or mixer.num_bases


def _item(layer, name: str, stage: str, inputs, outputs, num_bases: int = 1, path: str = "") -> Item:
    """The row of a layer. One with a `path` holds all N kernels, [N, ...]; without, it sees one of `num_bases`."""
    kernel_shape = layer.kernel.shape[1:] if path else layer.kernel.shape
    if isinstance(layer, nnx.Conv):
        kind = "depthwise" if layer.feature_group_count == layer.in_features > 1 else "convolution"
        positions = math.prod(outputs.shape[:-1])
    elif isinstance(layer, nnx.ConvTranspose):
        kind, positions = "transposed", math.prod(inputs.shape[:-1])
    else:
        kind, positions = "linear", inputs.size // _contracted(layer, kernel_shape)
    params = layer.kernel.size * num_bases + (0 if layer.bias is None else layer.bias.size)
    return Item(name, stage, kind, positions * math.prod(kernel_shape), params, path)


def _contracted(layer, kernel_shape) -> int:
    """Of each product of a linear layer, how many of its inputs one kernel meets."""
    if isinstance(layer, nnx.Einsum):
        inputs, kernel, _ = layer.einsum_str.replace("->", ",").split(",")
        return math.prod(size for letter, size in zip(kernel, kernel_shape, strict=True) if letter in inputs)
    return math.prod(layer.in_features) if isinstance(layer, nnx.LinearGeneral) else layer.in_features


def _times(jaxpr, outside: int = 1, found: dict | None = None) -> dict[int, int]:
    """How often the program runs each call, by its number; one that was traced only for its shape is not in it."""
    found = {} if found is None else found  # {call: {equation: times}}
    for equation in jaxpr.eqns:
        for call in re.findall(r"madds_(\d+)_", str(equation.source_info.name_stack)):
            equations = found.setdefault(int(call), {})
            equations[id(equation)] = equations.get(id(equation), 0) + outside
        inside = outside * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                _times(inner, inside, found)
    return {call: min(equations.values()) for call, equations in found.items()}


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


KINDS = (nnx.Conv, nnx.ConvTranspose, nnx.Linear, nnx.LinearGeneral, nnx.Einsum)
KINDS += (layers.BasisConv, layers.BasisLinear, layers.BasisOther)


@contextlib.contextmanager
def _recorded(record, calls: list) -> Iterator[None]:
    """Adds `record(layer, inputs, outputs)` for every call of a counted layer, whose number the program then names."""

    def recording(call):
        def wrapped(self, *args, **kwargs):
            number = len(calls)
            calls.append([])
            with jax.named_scope(f"madds_{number}_"):
                outputs = call(self, *args, **kwargs)
            inputs = args[0] if args else next(iter(kwargs.values()))
            calls[number] = record(self, inputs, outputs)
            return outputs

        return wrapped

    with contextlib.ExitStack() as stack:
        for kind in KINDS:
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
