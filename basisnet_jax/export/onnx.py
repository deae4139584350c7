"""ONNX, run by onnxruntime, one image at a time: `preview.onnx`, `specialist.onnx`, and both in `model.onnx`.

`model.onnx` takes the images to their logits; its `If` runs the specialist only where the preview's confidence is below
`threshold`, an input with the calibrated one as its default. The weights are in files of their own, so that
`model.onnx` shares them with the other two. A model without a preview is `network.onnx` alone.
"""

import contextlib
import logging
import pathlib
import warnings

import jax
import numpy as np

from basisnet_jax.export import stages
from basisnet_jax.export.requirements import required
from basisnet_jax.ops import platforms

OPSET = 21


def write(run, rule, folder: pathlib.Path) -> dict:
    onnx = required("onnx")
    required("onnxruntime")  # to run it, which verification does
    graphs = {}
    for stage in stages.of(run.model, run.preprocess, rule, kernels="oihw"):
        path = folder / f"{stage.name}.onnx"
        options = dict(save_as_external_data=True, location=f"{stage.name}.weights", size_threshold=1024)
        onnx.save(converted(stage), path, **options)
        graphs[stage.name] = onnx.load(path, load_external_data=False)
    if "preview" in graphs:
        onnx.save(joined(graphs["preview"], graphs["specialist"], rule.threshold), folder / "model.onnx")
    return {"opset": OPSET}


def converted(stage: stages.Stage):
    """The ONNX model of a stage for a batch of one; its inputs and outputs have the stage's names."""
    # jax2onnx does not know how jax 0.11 and later write down a `jit` inside a function, so there is none.
    with converter() as jax2onnx, platforms.paths_for("gpu"), jax.disable_jit():
        specs = [jax.ShapeDtypeStruct((1, *array.shape), array.dtype) for array in stage.inputs.values()]
        outputs = sorted(jax.eval_shape(stage, *specs))  # as JAX flattens a dict
        names = dict(model_name=stage.name, input_names=list(stage.inputs), output_names=outputs)
        return jax2onnx.to_onnx(lambda *inputs: stage(*inputs), specs, opset=OPSET, **names)


@contextlib.contextmanager
def converter():
    """jax2onnx, its notes on plugins that this version of JAX is too new for left out."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # It asks JAX what `jnp.where` with a number gives, in float64; the numbers in the file are float32.
            warnings.filterwarnings("ignore", "Explicitly requested dtype float64", UserWarning)
            yield required("jax2onnx")
    finally:
        root.setLevel(level)


def joined(preview, specialist, threshold: float):
    """One model of both: images (and threshold) -> logits, and `stopped`, whether they are the preview's."""
    onnx = required("onnx")
    helper, compose, kinds = onnx.helper, onnx.compose, onnx.TensorProto
    first = compose.add_prefix(preview, "preview/").graph
    second = compose.add_prefix(specialist, "specialist/").graph
    [logits] = (output for output in specialist.graph.output if output.name == "logits")
    shape = [dim.dim_value for dim in logits.type.tensor_type.shape.dim]
    # The specialist takes images and coefficients from the graph around it: a branch of `If` has no inputs.
    taken = {f"{stage}/images": "images" for stage in ("preview", "specialist")}
    taken["specialist/coefficients"] = "preview/coefficients"
    for node in (*first.node, *second.node):
        node.input[:] = [taken.get(name, name) for name in node.input]
    answer = helper.make_tensor_value_info("specialist/logits", kinds.FLOAT, shape)
    goes_on = helper.make_graph(second.node, "specialist", [], [answer], second.initializer)
    answer = helper.make_tensor_value_info("preview/answer", kinds.FLOAT, shape)
    same = helper.make_node("Identity", ["preview/logits"], ["preview/answer"])
    stops = helper.make_graph([same], "stops", [], [answer])
    nodes = [
        *first.node,
        helper.make_node("GreaterOrEqual", ["preview/confidence", "threshold"], ["stopped"]),
        helper.make_node("If", ["stopped"], ["logits"], then_branch=stops, else_branch=goes_on),
    ]
    images = preview.graph.input[0]
    given = helper.make_tensor_value_info("threshold", kinds.FLOAT, [1])
    outputs = [
        helper.make_tensor_value_info("logits", kinds.FLOAT, shape),
        helper.make_tensor_value_info("stopped", kinds.BOOL, [1]),
    ]
    default = helper.make_tensor("threshold", kinds.FLOAT, [1], [threshold])
    graph = helper.make_graph(nodes, "basisnet", [images, given], outputs, [*first.initializer, default])
    return helper.make_model(graph, opset_imports=preview.opset_import, ir_version=preview.ir_version)


def load(folder: pathlib.Path, manifest: dict, threads: int | None = None) -> dict:
    """A function for each stage and, where there are two, "model": images -> logits, stopped.

    They run on so many threads; None: on all cores.
    """
    onnxruntime = required("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # without the notes on what its optimizer does
    options.intra_op_num_threads = threads or 0

    def runner(name):
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
        keys = [value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())]
        names = [value.name for value in session.get_outputs()]

        def run(*arrays):
            feed = dict(zip(keys, map(np.asarray, arrays), strict=False))
            return dict(zip(names, session.run(None, feed), strict=True))

        return run

    names = [*manifest["stages"], *(["model"] if "preview" in manifest["stages"] else [])]
    return {name: runner(name) for name in names}
