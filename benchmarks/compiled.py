"""The training step compiled for a TPU or GPU that is not there: traffic, temporaries, FLOPs and compile time, by path.

    python benchmarks/compiled.py --topology=v5e:1x1 [--quick] [--json FILE] [--batch=128] [CANDIDATE ...]
    python benchmarks/compiled.py --topology=h100:1 [--text=FOLDER] [CANDIDATE ...]

Needs the extra `tpu-plan` or `gpu-plan`. configs/imagenet_basisnet_mv3.py, 128 images a device at 224 px, bfloat16,
for: the static network with the preview (the reference), the static network alone, and BasisNet-16 by the paths that
ops/conv.py chooses and by others for single kinds of layers. Nothing runs, so `ours_ms` and `reference_ms` are bounds:
the greater of FLOPs and HBM traffic at the chip's published peaks. `ratio` is that of traffic, as `hlo.traffic` counts
it. On a TPU, `accessed_gb` includes memory on the chip; on a GPU, `launches` are kernels and functions of libraries. A
candidate that does not fit in memory, or that the compiler refuses, has its reason in place of numbers.

Below the table stands what each candidate moves above the reference, by line of Python, and its largest instructions.
`--text` keeps the programs. A compilation takes minutes: name a candidate to have it alone, beside the reference.
`--quick` (a minute or two) has the first stages of the networks, 4 bases, 8 images at 64 px, and no candidates but the
chosen paths.
"""

import collections
import pathlib
import time

import jax
import measure
from basisnet_jax.configs import imagenet_basisnet_mv3
from flax import nnx
from preview_and_static import PreviewAndStatic

from basisnet_jax import cli, models, plan
from basisnet_jax.distributed import partition
from basisnet_jax.ops import platforms
from basisnet_jax.plan import hlo, machine

REFERENCE = "static + preview"
PATHS = {  # of BasisNet: {kind of layer: path}; what is not named is ops/conv.py's choice
    "chosen": {},
    "depthwise by XLA": {"depthwise": "depthwise"},
    "depthwise folded": {"depthwise": "folded"},
    "general for pointwise": {"pointwise": "general"},
}
COLUMNS = {"ratio": ".2f", "temporaries_ratio": ".2f", "bound_ms": ".1f", "traffic_gb": ".2f", "accessed_gb": ".2f"}
COLUMNS |= {"temporaries_gb": ".2f", "gflops": ".0f", "launches": ",", "trace_s": ".0f", "compile_s": ".0f"}
LARGEST = 20  # lines of Python, and instructions


def functions_of(candidate: str, config) -> models.Functional:
    """The candidate's model, with shapes in place of arrays but for the keys of its dropout."""
    config = config.copy_and_resolve_references()
    if candidate == "static":
        config.model = "static"
    config.basis.paths.update(PATHS.get(candidate, {}))
    make = PreviewAndStatic if candidate == REFERENCE else models.create
    return models.abstract(nnx.eval_shape(lambda: make(config)))


def compiled(candidate: str, config, target: machine.Machine) -> tuple[dict, str]:
    """The candidate's row, and the text of its program."""
    mesh = partition.create_mesh(config.batch_size, devices=target.devices)
    begin = time.perf_counter()
    with platforms.paths_for(target.platform):
        trace = plan.trace(config, functions_of(candidate, config), mesh, examples=None)
        lowered = trace.lower()
    traced = time.perf_counter()
    try:
        program = plan.TARGETS[target.platform].compile(lowered, target.chip)
    except machine.TooLarge as error:
        return {"failed": f"needs {plan.gib(error.needed)} of memory and has {plan.gib(error.available)}"}, ""
    except jax.errors.JaxRuntimeError as error:
        return {"failed": str(error).splitlines()[0]}, ""
    seconds, needs = time.perf_counter() - traced, plan.of_program(trace, program, target, config)
    row = {
        "bound_ms": 1000 * needs["seconds"]["step"],
        "traffic_gb": needs["hbm_traffic"] / 1e9,
        "temporaries_gb": needs["memory"]["temporaries"] / 1e9,
        "gflops": needs["flops"] / 1e9,
        "trace_s": traced - begin,
        "compile_s": seconds,
    }
    if "launches" in needs:
        row["launches"] = needs["launches"]
    if "bytes_accessed" in needs:
        row["accessed_gb"] = needs["bytes_accessed"] / 1e9
    return row, program.as_text()


def by_size(sizes: collections.Counter) -> list[str]:
    return [f"  {size / 1e9:6.2f} GB  {name}" for name, size in sizes.most_common(LARGEST)]


def main() -> None:
    parser = measure.flags(__doc__)
    parser.add_argument("--topology", default="v5e:1x1")
    parser.add_argument("--batch", type=int, default=128, help="images a device")
    parser.add_argument("--text", metavar="FOLDER", type=pathlib.Path, help="where the compiled programs go, as text")
    parser.add_argument("candidates", nargs="*", metavar="CANDIDATE", help=f"of static, {', '.join(PATHS)}; all")
    flags = parser.parse_args()
    cli.quiet_logs()
    target = plan.find_machine(flags.topology)
    config = imagenet_basisnet_mv3.get_config("bases=4" if flags.quick else "")
    candidates = flags.candidates or (["chosen"] if flags.quick else ["static", *PATHS])
    if flags.quick:
        config.image_size, config.preview.image_size = 64, 32
        config.network.num_stages = config.preview.num_stages = 2
    config.batch_size = (8 if flags.quick else flags.batch) * len(target.devices)
    rows, details = [], []
    for candidate in [REFERENCE, *candidates]:
        row, text = compiled(candidate, config, target)
        rows.append({"name": f"BasisNet, {candidate}" if candidate in PATHS else candidate, **row})
        print(rows[-1], flush=True)
        if text and flags.text:
            flags.text.mkdir(parents=True, exist_ok=True)
            (flags.text / f"{candidate.replace(' ', '_')}.txt").write_text(text)
        if candidate == REFERENCE:
            reference, of_reference = row, hlo.by_source(text)
        elif "failed" not in row and "failed" not in reference:
            rows[-1] |= {"ours_ms": row["bound_ms"], "reference_ms": reference["bound_ms"]}
            rows[-1]["ratio"] = row["traffic_gb"] / reference["traffic_gb"]
            rows[-1]["temporaries_ratio"] = row["temporaries_gb"] / reference["temporaries_gb"]
            details += ["", f"{candidate}: traffic above the reference", *by_size(hlo.by_source(text) - of_reference)]
            largest = collections.Counter({f"{one.name} {one.shape}"[:100]: size for one, size in hlo.movers(text)})
            details += ["", f"{candidate}: the largest instructions", *by_size(largest)]
    columns = {name: form for name, form in COLUMNS.items() if any(name in row for row in rows)}
    print(measure.table(rows, columns | {"failed": ""}))
    print("\n".join(details))
    measure.write(rows, flags.json)


if __name__ == "__main__":
    main()
