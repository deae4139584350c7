"""What an image costs in the exported formats, one image at a time; with a run, whether their labels are JAX's.

    python benchmarks/exports.py [--quick] [--json FILE] [--workdir=runs/digits]

BasisNet-MobileNetV3 (configs/imagenet_basisnet_mv3.py, 224 px, random weights) as TFLite, in float32 and with int8
weights, and as ONNX, by LiteRT and onnxruntime (extra `export`) on all cores; taking turns, medians.

    stops          the preview and the decision, against the preview's function alone; in ONNX by the `If` of model.onnx
    bare preview   the same against an export of the preview network by itself: no resizing, no coefficients
    goes on        preview, mixing and specialist, against an export of the static MobileNetV3-Large

`bases_ms` is how long one core takes to read the bases once, in float32. `--quick` (under a minute)
takes small networks. With `--workdir` every format of that run is run on its whole test split: `same` labels of
`images`, and the largest difference of a logit, relative to the largest logit.
"""

import pathlib
import tempfile
import time

import measure
import numpy as np
from basisnet_jax.configs import imagenet_basisnet_mv3

from basisnet_jax import basis, early_exit, export, models, preprocess
from basisnet_jax.export import stages, verify
from basisnet_jax.workdir import runs

FORMATS = {"TFLite": ("tflite", {}), "TFLite, int8": ("tflite", {"precision": "int8"}), "ONNX": ("onnx", {})}
RULE = early_exit.Rule(0.5)
SCRATCH = tempfile.TemporaryDirectory()  # the runtimes map files into memory: they outlive the functions here


def exported(config, model, format: str, options: dict) -> dict:
    """The functions of an export of a model by stage, as `predict` runs them."""
    functions = models.functional(model)
    run = runs.Run(config, model, functions, functions.params, functions.batch_stats, 0)
    inputs = {name: {"inputs": of_stage} for name, of_stage in stages.inputs(model, preprocess.of(config)).items()}
    folder = pathlib.Path(tempfile.mkdtemp(dir=SCRATCH.name))
    export.FORMATS[format].write(run, RULE, folder, **options)
    return export.FORMATS[format].load(folder, {"stages": inputs})


def measured(config, turns: int) -> list[dict]:
    model = models.create(config)
    static, preview = config.copy_and_resolve_references(), config.copy_and_resolve_references()
    static.model = preview.model = "static"
    preview.network.update({name: config.preview[name] for name in config.preview if name != "image_size"})
    preview.image_size = config.preview.image_size
    random = np.random.default_rng(0)
    image, small = (random.integers(0, 256, (1, c.image_size, c.image_size, 3), np.uint8) for c in (config, preview))
    rows = []
    for name, (format, options) in FORMATS.items():
        ours = exported(config, model, format, options)
        large = exported(static, models.create(static), format, options)["network"]
        bare = exported(preview, models.create(preview), format, options)["network"]

        def run(image, threshold, ours=ours):
            if "model" in ours:
                return ours["model"](image, np.float32([threshold]))["logits"]
            outputs = ours["preview"](image)
            if outputs["confidence"][0] >= threshold:
                return outputs["logits"]
            return ours["specialist"](image, outputs["coefficients"])["logits"]

        pairs = {
            "stops": (lambda run=run: run(image, 0.0), lambda ours=ours: ours["preview"](image)),
            "bare preview": (lambda run=run: run(image, 0.0), lambda bare=bare: bare(small)),
            "goes on": (lambda run=run: run(image, 1.1), lambda large=large: large(image)),
        }
        rows += [measure.compare(f"{name}: {kind}", *pair, turns) for kind, pair in pairs.items()]
        if not options:
            rows[-1]["bases_ms"] = reading(model)
    return rows


def reading(model) -> float:
    """Median milliseconds for one pass over the bases of a model, float32, in NumPy on one core."""
    layers = basis.basis_layers(model.specialist).values()
    kernels = np.concatenate([np.asarray(layer.layer.kernel[...]).ravel() for layer in layers])
    times = []
    for _ in range(11):
        begin = time.perf_counter()
        kernels.sum()
        times.append(time.perf_counter() - begin)
    return 1000 * float(np.median(times))


def labels(workdir: str) -> list[dict]:
    """How every format answers on the run's test split."""
    run = runs.load(workdir)
    rule = export.rule_of(run, workdir, None)
    images, labels = verify.examples(run, workdir, None, run.config.test_split, most=None)
    inputs = {name: {"inputs": of_stage} for name, of_stage in stages.inputs(run.model, run.preprocess).items()}
    rows = []
    for format, module in export.FORMATS.items():
        for precision in module.PRECISIONS if format == "tflite" else ("float32",):
            folder = pathlib.Path(tempfile.mkdtemp(dir=SCRATCH.name))
            extra = module.write(run, rule, folder, **({"precision": precision} if format == "tflite" else {}))
            manifest = {"stages": inputs, "early_exit": rule._asdict(), **extra}
            found = verify.compare(run, rule, module.load(folder, manifest), images, labels)
            row = {"name": f"{format}, {precision}", "same": found["same_labels"], "images": found["num_images"]}
            rows.append(row | {"top1": found["top1"], "difference": max(found["largest_difference"].values())})
    return rows


def main() -> None:
    parser = measure.flags(__doc__)
    parser.add_argument("--workdir", help="of a run, whose labels are compared")
    flags = parser.parse_args()
    config = imagenet_basisnet_mv3.get_config("bases=4,width=0.35" if flags.quick else "")
    config.dtype = "float32"
    if flags.quick:
        config.image_size, config.preview.image_size = 96, 64
        config.network.num_stages = config.preview.num_stages = 3
    rows = measured(config, 11 if flags.quick else 31)
    columns = {"ours_ms": ".2f", "reference_ms": ".2f", "ratio": ".2f", "cpu_ratio": ".2f", "bases_ms": ".2f"}
    print(measure.table(rows, columns))
    if flags.workdir:
        compared = labels(flags.workdir)
        print(measure.table(compared, {"same": "d", "images": "d", "top1": ".4f", "difference": ".1e"}))
        rows += compared
    measure.write(rows, flags.json)


if __name__ == "__main__":
    main()
