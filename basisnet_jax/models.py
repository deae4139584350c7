"""The model of a config, and any model as plain data and pure functions of it."""

import json
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from basisnet_jax import baselines, basis, calling, networks, preprocess, reduced
from basisnet_jax.basisnet import BasisNet, Outputs
from basisnet_jax.classifier import Classifier, Static
from basisnet_jax.configs import ranges
from basisnet_jax.errors import UserError
from basisnet_jax.networks import batch_norm, own
from basisnet_jax.ops import conv

# Where BasisNet, baselines.Routed, baselines.Unit and basis.BasisLayer hold what they are made of. A path without these
# names is that of the plain network.
WRAPPERS = ("specialist", "network", "body", "layer")
# What the train step does not hand from one step to the next. Random state follows from each step's key.
NOT_KEPT = nnx.Not(nnx.Any(nnx.Param, nnx.BatchStat, nnx.RngState, nnx.Intermediate))
# Fields of config.coefficients for all models with bases.
COEFFICIENT_FIELDS = ("activation", "temperature", "top_k", "dropout", "dropout_per")


def create(config: ml_collections.ConfigDict) -> nnx.Module:
    """The model that a config describes: a `BasisNet`, a `baselines.Routed`, or "static" the plain `config.network`."""
    model = _create(config)
    model.preprocess = preprocess.of(config)
    model.config_json = json.dumps(config.to_dict())
    for path, module in nnx.iter_modules(model):
        if isinstance(module, batch_norm.BatchNorm):
            module.groups = config.batch_norm_groups
        elif isinstance(module, nnx.BatchNorm) and config.batch_norm_groups > 1:
            given = f"config.batch_norm_groups={config.batch_norm_groups}"
            raise UserError(
                f"{given}, but {'/'.join(map(str, path))} is an nnx.BatchNorm, which has no groups: expected 1"
            )
        if isinstance(module, basis.BasisLayer):
            module.remat = config.remat_kernels
        if isinstance(module, basis.BasisConv):
            module.path = _path(module, config.basis.paths)
    if names := [fields.name for fields in (config.network, config.preview) if ranges.is_own(fields.name)]:
        _check_logits(model, config.num_classes, names)
    return model


def check_preview(config: ml_collections.ConfigDict) -> None:
    """Refuses a preview that sees more pixels than the image has. `create` does not: runs from before may have one."""
    size, most = config.preview.image_size, config.image_size
    if config.model == "basisnet" and size > most:
        raise UserError(f"config.preview.image_size={size}, expected at most config.image_size={most}")


def _check_logits(model: Classifier, num_classes: int, names: list[str]) -> None:
    """Traces a model with a network of one's own: what it cannot do is said before any work is done."""
    model = nnx.clone(model)
    model.eval()
    graph, state = nnx.split(model)
    image = jax.ShapeDtypeStruct((1, *model.preprocess.shape), jnp.float32)
    try:
        outputs = jax.eval_shape(lambda state, image: nnx.merge(graph, state, copy=True)(image), state, image)
    except Exception as error:
        message = own.told(own.blamed(names, error), error)
        raise UserError(message.replace("where=", "config.basis.layers")) from error
    for logits in jax.tree.leaves(outputs)[: 1 + isinstance(model, BasisNet)]:
        if logits.shape != (1, num_classes):
            shape = f"{logits.shape} for an image of {model.preprocess.shape}"
            raise UserError(f"network {' or '.join(names)} gives {shape}, expected {(1, num_classes)}")


def _path(layer: basis.BasisConv, paths: ml_collections.ConfigDict) -> str | None:
    """The one that the config wants for layers of this kind; None: the best."""
    shape = (1, *layer.layer.kernel_size, layer.in_features)
    possible = conv.paths(shape, layer.layer.kernel.shape[1:], **layer.geometry)
    kind = next(kind for kind in ("pointwise", "depthwise", "general") if kind in possible)
    if paths[kind] and paths[kind] not in possible:
        raise UserError(f"config.basis.paths.{kind}={paths[kind]!r}, expected one of {', '.join(possible)}, or nothing")
    return paths[kind] or None


def _create(config: ml_collections.ConfigDict) -> nnx.Module:
    common = dict(num_classes=config.num_classes, channels=config.channels, dtype=jnp.dtype(config.dtype))
    rngs = nnx.Rngs(config.seed)
    network = _network("network", dict(config.network), common, rngs)
    if config.model == "static":
        return network if isinstance(network, Classifier) else Static(network, rngs)
    of_coefficients = {name: config.coefficients[name] for name in COEFFICIENT_FIELDS}
    try:
        # The default pattern is of the networks of this package; one's own has the default of `with_bases`.
        is_default = ranges.is_own(config.network.name) and config.basis.layers == basis.LAYERS
        chosen = None if is_default else basis.matching(config.basis.layers)
        init = {"independent": basis.independent, "copies": basis.copies(config.init_noise)}[config.basis.init]
        network = basis.with_bases(network, config.basis.num_bases, where=chosen, init=init, rngs=rngs)
        if config.model == "routed":
            units = basis.matching(config.routing.units)
            return baselines.routed(network, units, hidden=config.routing.hidden, **of_coefficients, rngs=rngs)
        preview = dict(config.preview)
        preview_size = preview.pop("image_size")
        preview = _network("preview", preview, common, rngs)
        shared = config.coefficients.shared
        return BasisNet(network, preview, preview_size=preview_size, shared=shared, **of_coefficients, rngs=rngs)
    except ValueError as error:  # of these, all are about what the config gave
        message = str(error).replace("where=", "config.basis.layers")
        raise UserError(f"config.basis, config.coefficients or config.routing: {message}") from error


def _network(section: str, fields: dict, common: dict, rngs: nnx.Rngs) -> nnx.Module:
    if twice := sorted(fields.keys() & {*common, "rngs"}):
        (field, *_) = twice
        instead = f"config.{field}" if field in common else "config.seed"
        raise UserError(f"config.{section}.{field}={fields[field]!r} is not a field of a network, set {instead}")
    return networks.create(**fields, **common, rngs=rngs)


def create_abstract(config: ml_collections.ConfigDict) -> nnx.Module:
    """The model of a config with shapes in place of arrays: costs no memory, for counting."""
    return nnx.eval_shape(lambda: create(config))


def plain_path(path: Iterable) -> tuple:
    """A path in a model with bases as it is in the plain network."""
    return tuple(part for part in path if part not in WRAPPERS)


def unwrapped(module: nnx.Module) -> nnx.Module:
    """What `Routed`, `Unit` or `BasisLayer` wrap, or a module of none of these itself."""
    for name in WRAPPERS:
        module = getattr(module, name, module)
    return module


class Functional(NamedTuple):
    """A model as plain data and pure functions of it, which is what training, evaluation and checkpoints see."""

    params: dict
    batch_stats: dict
    train: Callable  # (params, batch_stats, images, key, temperature=None) -> (Outputs, new batch_stats)
    evaluate: Callable  # (params, batch_stats, images) -> Outputs
    num_bases: dict[str, int]  # of each kernel that has bases, by its path in params, joined with "/"
    head_features: dict[str, int]  # of a BasisNet, the inputs of its coefficient head, by the paths of its params


def functional(model: nnx.Module) -> Functional:
    """Splits a model; all its randomness in training (dropout) follows from the key given to `train`.

    A `temperature` given to `train` stands in for that of the coefficients.
    """
    model.train()
    _, params, batch_stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    train_graph = nnx.graphdef(reduced.with_reduced_layers(model))
    model.eval()
    eval_graph = nnx.graphdef(model)

    def outputs(model, images, deterministic, rngs=None):
        result = model(images, **calling.in_mode(model, deterministic, rngs))
        return result if isinstance(result, Outputs) else Outputs(result)

    def train(params, batch_stats, images, key, temperature=None):
        fresh = nnx.State(params), nnx.State(batch_stats), _reseeded(rest, key)
        model = nnx.merge(train_graph, *fresh, copy=True)
        before = raw_values(model, NOT_KEPT)
        if temperature is not None:
            model.set_attributes(temperature=temperature, raise_if_not_found=False)
        result = outputs(model, images, False, nnx.Rngs(jax.random.fold_in(key, len(jax.tree.leaves(rest)))))
        for path, value in raw_values(model, NOT_KEPT).items():
            if value is not before.get(path):
                where = "/".join(map(str, path))
                raise ValueError(f"{where} changes in training, but only nnx.BatchStat is kept: make it one")
        return result, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    def evaluate(params, batch_stats, images):
        model = nnx.merge(eval_graph, nnx.State(params), nnx.State(batch_stats), rest, copy=True)
        return outputs(model, images, True)

    params, batch_stats = nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)
    num_bases = {f"{path}/layer/kernel": layer.num_bases for path, layer in basis.basis_layers(model).items()}
    head_features = {}
    if isinstance(model, BasisNet):
        in_features = model.coefficient_head.in_features
        head_features = dict.fromkeys(("coefficient_head/kernel", "coefficient_head/bias"), in_features)
    return Functional(params, batch_stats, train, evaluate, num_bases, head_features)


def raw_values(model: nnx.Module, kind) -> dict[tuple, jax.Array]:
    """{path: array} of a model's variables of a kind."""
    return {path: variable.get_raw_value() for path, variable in nnx.to_flat_state(nnx.state(model, kind))}


def abstract(model: nnx.Module) -> Functional:
    """`functional` of a model with shapes in place of arrays; what else it holds, its keys, is zero."""
    graph, params, batch_stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

    def zero(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key(0) if is_key else jnp.zeros(leaf.shape, leaf.dtype)

    return functional(nnx.merge(graph, params, batch_stats, jax.tree.map(zero, rest)))


def _reseeded(rest: nnx.State, key: jax.Array) -> nnx.State:
    """The state with every random key in it replaced by one that follows from `key`."""
    leaves, tree = jax.tree.flatten(rest)
    keys = [
        jax.random.fold_in(key, i) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, keys)
