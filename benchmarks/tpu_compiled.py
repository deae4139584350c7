"""The training step compiled for a TPU v5e that is not there: traffic, temporaries, FLOPs and compile time, by path.

    python benchmarks/tpu_compiled.py [--quick] [--json FILE] [--topology=v5e:1x1] [--batch=128] [CANDIDATE ...]

Needs the extra `tpu-plan`. configs/imagenet_basisnet_mv3.py, 128 images a device at 224 px, bfloat16, for: the static
network alone, with the preview (the reference), and BasisNet-16 by the paths that ops/conv.py chooses and by others for
single kinds of layers. Nothing runs, so `ours_ms` and `reference_ms` are bounds: the greater of FLOPs and HBM traffic
at the chip's published peaks. `ratio` is that of traffic, as `hlo.traffic` counts it; `accessed_gb` includes memory on
the chip. A candidate that does not fit in memory, or that the compiler refuses, has its reason in place of numbers.

A compilation takes minutes: name a candidate to have it alone, beside the reference. `--quick` (a minute or two: libtpu
takes so long) has the first stages of the networks, 4 bases, 8 images at 64 px, and no candidates but the chosen paths.
"""

import time

import jax
import measure
from basisnet_jax.configs import imagenet_basisnet_mv3
from flax import nnx
from preview_and_static import PreviewAndStatic

from basisnet_jax import cli, models, plan
from basisnet_jax.distributed import partition
from basisnet_jax.ops import platforms
from basisnet_jax.plan import hlo

REFERENCE = "static + preview"
PATHS = {  # of BasisNet: {kind of layer: path}; what is not named is ops/conv.py's choice
    "chosen": {},
    "depthwise by XLA": {"depthwise": "depthwise"},
    "general for pointwise": {"pointwise": "general"},
}


def functions_of(candidate: str, config) -> models.Functional:
    """The candidate's model, with shapes in place of arrays but for the keys of its dropout."""
    config = config.copy_and_resolve_references()
    if candidate == "static":
        config.model = "static"
    config.basis.paths.update(PATHS.get(candidate, {}))
    make = PreviewAndStatic if candidate == REFERENCE else models.create
    return models.abstract(nnx.eval_shape(lambda: make(config)))


def compiled(candidate: str, config, device, chip: plan.Chip) -> dict:
    mesh = partition.create_mesh(config.batch_size, devices=[device])
    begin = time.perf_counter()
    with platforms.paths_for("tpu"):
        lowered = plan.lower(config, functions_of(candidate, config), mesh, examples=None)
    traced = time.perf_counter()
    try:
        program = lowered.compile(plan.COMPILER_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        return {"failed": str(error).splitlines()[0]}
    sizes, costs, traffic = program.memory_analysis(), program.cost_analysis(), hlo.traffic(program.as_text())
    return {
        "bound_ms": 1000 * max(costs["flops"] / chip.flops, traffic / chip.bandwidth),
        "traffic_gb": traffic / 1e9,
        "accessed_gb": costs["bytes accessed"] / 1e9,
        "temporaries_gb": sizes.temp_size_in_bytes / 1e9,
        "gflops": costs["flops"] / 1e9,
        "trace_s": traced - begin,
        "compile_s": time.perf_counter() - traced,
    }


def main() -> None:
    parser = measure.flags(__doc__)
    parser.add_argument("--topology", default="v5e:1x1")
    parser.add_argument("--batch", type=int, default=128, help="images a device")
    parser.add_argument("candidates", nargs="*", metavar="CANDIDATE", help=f"of static, {', '.join(PATHS)}; all")
    flags = parser.parse_args()
    cli.quiet_logs()
    config = imagenet_basisnet_mv3.get_config("bases=4" if flags.quick else "")
    config.batch_size = flags.batch
    candidates = flags.candidates or (["chosen"] if flags.quick else ["static", *PATHS])
    if flags.quick:
        config.batch_size, config.image_size, config.preview.image_size = 8, 64, 32
        config.network.num_stages = config.preview.num_stages = 2
    devices, chip = plan.find_devices(flags.topology)
    reference = compiled(REFERENCE, config, devices[0], chip)
    rows = [{"name": REFERENCE, **reference}]
    for candidate in candidates:
        row = {"name": candidate if candidate == "static" else f"BasisNet, {candidate}"}
        row |= compiled(candidate, config, devices[0], chip)
        if "failed" not in row:
            row |= {"ours_ms": row["bound_ms"], "reference_ms": reference["bound_ms"]}
            row["ratio"] = row["traffic_gb"] / reference["traffic_gb"]
            row["temporaries_ratio"] = row["temporaries_gb"] / reference["temporaries_gb"]
        rows.append(row)
        print(row, flush=True)
    columns = {"ratio": ".2f", "temporaries_ratio": ".2f", "bound_ms": ".1f", "traffic_gb": ".2f"}
    columns |= {"accessed_gb": ".2f", "temporaries_gb": ".2f", "gflops": ".0f", "trace_s": ".0f", "compile_s": ".0f"}
    print(measure.table(rows, columns | {"failed": ""}))
    measure.write(rows, flags.json)


if __name__ == "__main__":
    main()
