"""The processes of a run: how they find each other, and what the others do when one of them dies."""

import contextlib
import os
import re
from collections.abc import Iterator

import jax

from basisnet_jax.errors import LostProcess, UserError


@contextlib.contextmanager
def joined(coordinator: str | None = None, processes: str | None = None, process: str | None = None) -> Iterator[None]:
    """Inside, this process is one of the run's, where there are several: before anything else touches a device.

    On Cloud TPU, SLURM (under srun) and GKE JAX finds the others by itself; elsewhere the three arguments say who they
    are. When one process dies the others end too: at the next collective that fails, or where collectives wait for ever
    (on accelerators), when JAX has missed it for 30 seconds.
    """
    given = (coordinator, processes, process)
    if any(value is not None for value in given) and None in given:
        raise UserError("--coordinator=HOST:PORT, --processes=N and --process=I must be given together")
    if coordinator is not None and not (processes.isdigit() and process.isdigit() and int(process) < int(processes)):
        raise UserError(f"--processes={processes} --process={process}, expected two numbers, the second the smaller")
    # Of the step, which srun starts: a job's own shell has the SLURM_NTASKS of the job, and runs one process.
    of_step = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    of_cluster = of_step or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if coordinator is None and not of_cluster:
        yield
        return
    if jax.config.jax_platforms == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    numbers = (None, None) if coordinator is None else (int(processes), int(process))
    try:
        jax.distributed.initialize(coordinator, *numbers, heartbeat_timeout_seconds=30, shutdown_timeout_seconds=60)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of this run did not come together: {str(error).splitlines()[0]}") from error
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not re.search("peer|remote process|heartbeat", str(error)):
            raise
        raise LostProcess(
            f"process {jax.process_index()} of {jax.process_count()} stops: another one has died or cannot be reached "
            f"({str(error).splitlines()[0][:200]}); all of them started again go on from the last checkpoint"
        ) from error
