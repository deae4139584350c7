"""Memory of a training step that keeps the per-example kernels for its backward pass, and of one that makes them again.

    python experiments/remat.py --config=configs/imagenet_basisnet_mv3.py --config.dtype=float32 --batch_sizes=32

Compiles the step on the devices that are there, without running it, and prints what XLA sets aside for temporaries.
`config.remat_kernels` is the switch. On a TPU that is not there: `basisnet plan --config.remat_kernels=True`.
"""

import argparse

import jax

from basisnet_jax import basis, cli, models, partition, plan


def temporaries(config) -> int:
    """Bytes on each device."""
    lowered = plan.lower(config, partition.create_mesh(config.batch_size, config.fsdp), examples=None)
    quickly = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}  # of machine code only
    return lowered.compile(quickly).memory_analysis().temp_size_in_bytes


def kernels_of_an_example(config) -> int:
    """Bytes of all the kernels that are mixed for one example."""
    layers = basis.basis_layers(models.create_abstract(config).specialist).values()
    size = sum(layer.layer.kernel.size // layer.num_bases for layer in layers)
    return size * jax.numpy.dtype(config.dtype).itemsize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_sizes", default="32")
    args, of_config = parser.parse_known_args()
    cli.quiet_logs()
    config = cli.resolve(cli.parse(of_config, "config").config)
    print(f"{config.dtype}, {jax.device_count()} x {jax.devices()[0].device_kind}")
    print(f"{'batch':>5}  {'its kernels':>12}  {'kept':>12}  {'made again':>12}  {'less':>6}")
    for config.batch_size in map(int, args.batch_sizes.split(",")):
        kernels, sizes = config.batch_size // jax.device_count() * kernels_of_an_example(config), []
        for config.remat_kernels in (False, True):
            sizes.append(temporaries(config))
        columns = "  ".join(f"{size / 2**20:>8.0f} MiB" for size in (kernels, *sizes))
        print(f"{config.batch_size:>5}  {columns}  {1 - sizes[1] / sizes[0]:>6.1%}", flush=True)


if __name__ == "__main__":
    main()
