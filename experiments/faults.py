"""Kills a training run again and again and compares what it ends with to the run that was left alone.

    python experiments/faults.py --kills=30 --workdir=runs/faults

The run is that of configs/digits.py with small networks and a checkpoint every 5 steps. Odd kills (SIGKILL) come at a
random moment, even ones while a checkpoint is being written. After each the same command is started again. Prints what
was hit, and whether params, batch statistics, averages and optimizer state are the same bit for bit.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "digits.py"
SMALL = [
    *(f"--config.{network}.{field}" for network in ("network", "preview") for field in ("width=0.1", "num_stages=1")),
    *(f"--config.{network}.stage_strides=(2,)" for network in ("network", "preview")),
    "--config.image_size=16",
    "--config.preview.image_size=8",
    "--config.checkpoint_every_steps=5",
    "--config.keep_checkpoints=2",
    "--config.log_every_steps=5",
]


def command(workdir: pathlib.Path, *flags: str) -> list[str]:
    """`basisnet train`, small; later flags win."""
    program = [sys.executable, "-m", "basisnet_jax.cli", "train"]
    return [*program, f"--config={CONFIG}:bases=2", *SMALL, f"--workdir={workdir}", *flags]


def steps(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def is_saving(workdir: pathlib.Path) -> bool:
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def kill_once(argv: list[str], workdir: pathlib.Path, rng: random.Random, while_saving: bool) -> dict | None:
    """Starts the run and kills it; what was hit, or None if the run ended first."""
    before = steps(workdir)
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    # The random moment counts from the first step of this life, which is when the log is opened for it.
    started, delay = None, rng.uniform(0, 6)
    while process.poll() is None:
        if started is None and (workdir / "metrics.jsonl").exists() and steps(workdir) != before:
            started = time.monotonic()
        if while_saving and is_saving(workdir):
            time.sleep(rng.uniform(0, 0.05))
            break
        if not while_saving and started is not None and time.monotonic() - started > delay:
            break
        time.sleep(0.001)
    saving = is_saving(workdir)
    process.kill()
    _, errors = process.communicate()
    if process.returncode >= 0:
        if process.returncode:
            raise RuntimeError(errors.decode())
        return None
    return {"while_saving": saving or is_saving(workdir), "checkpoints": steps(workdir)}


def state(workdir: pathlib.Path) -> dict[tuple, np.ndarray]:
    """All arrays of the newest checkpoint."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(workdir.resolve() / "checkpoints" / str(steps(workdir)[-1]) / "default")
    return {path: np.asarray(leaf) for path, leaf in ocp.tree.to_flat_dict(tree).items()}


def run(root: pathlib.Path, kills: int, *flags: str, seed: int = 0) -> dict:
    """Kills, restarts, compares; the figures of it."""
    rng = random.Random(seed)
    subprocess.run(command(root / "whole", *flags), check=True, capture_output=True)
    hits = []
    while len(hits) < kills:
        hit = kill_once(command(root / "killed", *flags), root / "killed", rng, while_saving=len(hits) % 2 == 1)
        if hit is None:
            break
        hits.append(hit)
    subprocess.run(command(root / "killed", *flags), check=True, capture_output=True)
    whole, killed = state(root / "whole"), state(root / "killed")
    equal = whole.keys() == killed.keys() and all(np.array_equal(whole[path], killed[path]) for path in whole)
    return {
        "kills": len(hits),
        "while_saving": sum(hit["while_saving"] for hit in hits),
        "steps": steps(root / "whole")[-1],
        "arrays": len(whole),
        "equal": equal,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    # Long enough that the run is not over before the last kill.
    epochs = f"--config.num_epochs={max(args.kills * 6, 20)}"
    print(json.dumps(run(args.workdir, args.kills, epochs, seed=args.seed)))


if __name__ == "__main__":
    main()
