"""Plain layers whose gradients several devices sum in the dtype of the params; `ops/reduction.py` says how."""

import functools

from flax import nnx

from basisnet_jax.ops import reduction


def with_reduced_layers(model: nnx.Module) -> nnx.Module:
    """A copy whose plain convolutions and linear layers heed `reduction.in_dtype_of_params`, as basis layers do."""
    model = nnx.clone(model)
    for _, module in nnx.iter_modules(model):
        for kind, ours in ((nnx.Conv, Conv), (nnx.Linear, Linear)):
            if type(module) is kind:
                object.__setattr__(module, "__class__", ours)  # nothing in it changes but the call
    return model


class Conv(nnx.Conv):
    def __call__(self, inputs, out_sharding=None):
        call = functools.partial(nnx.Conv.__call__, out_sharding=out_sharding)
        return called(self, call, inputs, rank=len(self.kernel_size) + 1)


class Linear(nnx.Linear):
    def __call__(self, inputs, out_sharding=None):
        call = functools.partial(nnx.Linear.__call__, out_sharding=out_sharding)
        return called(self, call, inputs, rank=1)


def called(layer: nnx.Module, call, inputs, rank: int):
    examples = inputs.shape[0] if inputs.ndim > rank else 1  # of one example alone no axis may be split
    if not reduction.applies(examples, layer.kernel.dtype, layer.dtype or layer.kernel.dtype):
        return call(layer, inputs)
    graph, params = nnx.split(layer)
    return reduction.by_device(lambda params, x: call(nnx.merge(graph, params), x), params, inputs)
