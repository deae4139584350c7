"""Memory of a training step that keeps the per-example kernels for its backward pass, and of one that makes them again.

    python experiments/remat.py --config=configs/imagenet_basisnet_mv3.py --batch_sizes=256 --topology=v5e:2x2

Compiles the step, without running it, and prints what XLA sets aside for temporaries on a device: of a TPU that need
not be there (extra `tpu-plan`), or without --topology of the devices that are. `config.remat_kernels` is the switch. To
be quick the compiler is asked for its least effort, so a run's own figures differ.
"""

import argparse

import jax

from basisnet_jax import basis, cli, models, parsing, plan
from basisnet_jax.distributed import partition
from basisnet_jax.ops import platforms


def temporaries(config, devices) -> int:
    """Bytes on each device."""
    with platforms.paths_for(devices[0].platform):
        functions = models.abstract(models.create_abstract(config))
        mesh = partition.create_mesh(config.batch_size, config.fsdp, devices)
        lowered = plan.trace(config, functions, mesh, examples=None).lower()
    on_cpu = {"xla_backend_optimization_level": 0}  # of machine code only
    options = on_cpu if devices[0].platform == "cpu" else {"exec_time_optimization_effort": -1.0}
    return lowered.compile(options).memory_analysis().temp_size_in_bytes


def kernels_of_an_example(config) -> int:
    """Bytes of all the kernels that are mixed for one example."""
    layers = basis.basis_layers(models.create_abstract(config).specialist).values()
    size = sum(layer.layer.kernel.size // layer.num_bases for layer in layers)
    return size * jax.numpy.dtype(config.dtype).itemsize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_sizes", default="32")
    parser.add_argument("--topology")
    args, of_config = parser.parse_known_args()
    cli.quiet_logs()
    config = parsing.resolve(parsing.read_config(of_config))
    devices = plan.find_machine(args.topology).devices if args.topology else jax.devices()
    print(f"{config.dtype}, {len(devices)} x {devices[0].device_kind}")
    print(f"{'batch':>5}  {'its kernels':>12}  {'kept':>12}  {'made again':>12}  {'less':>6}")
    for config.batch_size in map(int, args.batch_sizes.split(",")):
        kernels, sizes = config.batch_size // len(devices) * kernels_of_an_example(config), []
        for config.remat_kernels in (False, True):
            sizes.append(temporaries(config, devices))
        columns = "  ".join(f"{size / 2**20:>8.0f} MiB" for size in (kernels, *sizes))
        print(f"{config.batch_size:>5}  {columns}  {1 - sizes[1] / sizes[0]:>6.1%}", flush=True)


if __name__ == "__main__":
    main()
