"""Static and BasisNet, by number of bases and width, on scikit-learn's digits: for 2 CPU cores.

    basisnet sweep --sweep=configs/sweeps/bases_width.py --workdir=runs/bases_width

18 runs of 8 epochs. That is too short for the accuracy of configs/digits.py: it shows how a sweep is written, and what
it leaves. With --cluster=slurm each run is a job.
"""

CONFIG = "configs/digits.py"
COMMON = {"config.num_epochs": 8.0, "config.optimizer.warmup_epochs": 1.0, "config.eval_every_epochs": 8.0}
SLURM = {"cpus_per_task": 1, "timeout_min": 30}


def sweep():
    # Seeds outermost: runs that differ in their seed alone share all programs, so the first of them, which compiles,
    # should have ended when the next begins.
    for seed in range(3):
        for width in (0.25, 0.5):
            yield {"config.model": "static", "width": width, "seed": seed}
            for bases in (2, 8):
                yield {"config.model": "basisnet", "width": width, "bases": bases, "seed": seed}
