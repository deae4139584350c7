"""What starts a sweep's runs and tells which of them live: processes of this machine, or jobs of Slurm.

Both outlive a sweep that is killed and are found again by the next one: a process, because it holds the lock of its
log for as long as it lives; a job by its name.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable

from basisnet_jax.errors import UserError

PROMPT = "$ basisnet train "  # begins the line of the log that tells the command; a new life of the run has a new one
# What a run is taken to need at its peak until one has shown it, bytes: one of configs/digits.py with 4 bases takes
# 2.6 GB, most of it while it compiles.
FIRST_GUESS = 3e9


def command(run, cache: pathlib.Path) -> tuple[list[str], dict[str, str]]:
    """The run's command and what it wants in its environment; its log is opened with a line that tells the command."""
    run.folder.mkdir(parents=True, exist_ok=True)
    flags = [*run.flags, f"--workdir={run.folder}"]
    seconds = wall_seconds(run.folder)
    with open(run.folder / "log.txt", "a") as file:
        print(PROMPT + " ".join(flags), file=file)
    (run.folder / "started").write_text(f"{seconds}\n")
    # Without a floor of a second, as JAX has it, a second run finds all of the first one's programs.
    env = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return [sys.executable, "-m", "basisnet_jax.cli", "train", *flags], env


def wall_seconds(folder: pathlib.Path) -> float:
    """Of all lives of a run so far: `started` holds those before the last, which began when that file was touched."""
    try:
        before, began = float((folder / "started").read_text()), os.path.getmtime(folder / "started")
        return round(before + max(os.path.getmtime(folder / "log.txt") - began, 0), 1)
    except FileNotFoundError:
        return 0.0


class Processes:
    """Runs on this machine, a Linux, each on its own share of the cores and GPUs.

    Runs on disjoint cores do not wait for each other: XLA and tf.data make as many threads as they may use cores.
    """

    poll_s = 0.5

    def __init__(self, folder: pathlib.Path, jobs: int | None, slurm: dict):
        self.cache, self.jobs = folder / "cache", jobs
        self.cores = sorted(os.sched_getaffinity(0))
        self.gpus, most = devices()
        self.slots = jobs or min(most, len(self.cores))  # with --jobs, memory is the user's business
        self.processes: dict[str, tuple[int, subprocess.Popen]] = {}  # name: (slot, process)
        self.peak = 0.0

    def has_room(self, active: Collection) -> bool:
        """Whether one more run has a share of the cores, and memory for as much as the largest run has taken."""
        if self.jobs or not active or len(active) >= self.slots:
            return len(active) < self.slots
        taken = [memory(pid(run)) for run in active]
        self.peak = max(self.peak, *(peak for _, peak in taken))
        one_ended = any(process.poll() is not None for _, process in self.processes.values())
        need = self.peak if one_ended else max(self.peak, FIRST_GUESS)
        return available_memory() >= need + sum(max(need - now, 0) for now, _ in taken)

    def start(self, run) -> None:
        argv, env = command(run, self.cache)
        taken = {slot for slot, process in self.processes.values() if process.poll() is None}
        slot = next(slot for slot in range(self.slots) if slot not in taken)
        if self.gpus:
            mine = self.gpus[slot :: self.slots] or [self.gpus[slot % len(self.gpus)]]
            env["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        (run.folder / "pid").unlink(missing_ok=True)
        with open(run.folder / "log.txt", "ab") as log:
            fcntl.flock(log, fcntl.LOCK_EX)  # the process inherits it, and nothing but its end drops it
            os.sched_setaffinity(0, self.cores[slot :: self.slots] or self.cores)
            try:
                # In a process group of its own: Ctrl-C is for the sweep, which asks its runs to save.
                process = subprocess.Popen(
                    argv, env=os.environ | env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
                )
            finally:
                os.sched_setaffinity(0, self.cores)
        (run.folder / "pid").write_text(str(process.pid))
        self.processes[run.name] = slot, process

    def alive(self, runs: Iterable) -> set[str]:
        return {run.name for run in runs if self.is_alive(run)}

    def is_alive(self, run) -> bool:
        if run.name in self.processes:
            return self.processes[run.name][1].poll() is None
        try:
            with open(run.folder / "log.txt", "rb") as log:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True

    def reason(self, run) -> str | None:
        """Why a run ended, where it could not say so itself."""
        code = self.processes[run.name][1].returncode if run.name in self.processes else 0
        return f"killed by {signal.Signals(-code).name}" if code < 0 else None

    def stop(self, active: Collection, received: list[int]) -> None:
        """SIGTERM, at which a run saves and ends, SIGKILL at a second signal; returns when all have ended."""
        self.send(active, signal.SIGTERM)
        while self.alive(active):
            if len(received) > 1:
                self.send(active, signal.SIGKILL)
            time.sleep(0.1)

    def send(self, active: Collection, number: signal.Signals) -> None:
        for run in active:
            if self.is_alive(run) and (process := pid(run)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, number)


class Slurm:
    """Runs as jobs, one task each, submitted by submitit with the parameters of the sweep file's SLURM.

    What else sbatch is to know, its own variables tell, such as SBATCH_ACCOUNT. Two minutes before a job's time limit
    (`timeout_min`, an hour unless given) its run saves and ends, and is submitted again.
    """

    poll_s = 5.0

    def __init__(self, folder: pathlib.Path, jobs: int | None, slurm: dict):
        os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")  # else its import closes the log handlers of others
        try:
            import submitit
        except ImportError:
            raise UserError("--cluster=slurm needs submitit: pip install 'basisnet_jax[slurm]'") from None
        if missing := [program for program in ("sbatch", "srun", "squeue") if not shutil.which(program)]:
            raise UserError(f"--cluster=slurm: there is no {missing[0]} on this machine's PATH, hence no Slurm")
        self.submitit, self.cache, self.jobs = submitit, folder / "cache", jobs
        more = {"signal": "TERM@120", **slurm.get("slurm_additional_parameters", {})}
        self.parameters = {"timeout_min": 60, **slurm, "slurm_additional_parameters": more}
        try:
            self.executor(folder)
        except Exception as error:  # a name or a value that submitit does not know
            raise UserError(f"SLURM = {slurm}: {str(error).splitlines()[0]}") from None
        self.queue = self.read_queue()
        if self.queue is None:
            raise UserError("--cluster=slurm: squeue fails, so Slurm's controller cannot be reached")

    def executor(self, folder: pathlib.Path, **more):
        executor = self.submitit.AutoExecutor(folder, cluster="slurm")
        executor.update_parameters(**self.parameters, **more)
        return executor

    def has_room(self, active: Collection) -> bool:
        return self.jobs is None or len(active) < self.jobs

    def start(self, run) -> None:
        argv, env = command(run, self.cache)
        # The run's wall time begins when the job does. Its output does not pass through submitit, which would hold it
        # in memory, and whose pickle, as it calls a command, has nothing in it but these words.
        script = 'touch "$1" && exec env "${@:3}" >>"$2" 2>&1'
        words = [run.folder / "started", run.folder / "log.txt", *(f"{name}={value}" for name, value in env.items())]
        function = self.submitit.helpers.CommandFunction(["bash", "-c", script, "bash", *map(str, words), *argv])
        try:
            self.executor(run.folder / "slurm", name=job_name(run)).submit(function)
        except Exception as error:  # with what sbatch has said
            raise UserError(f"sbatch refuses a run: {' '.join(str(error).split())}") from None

    def alive(self, runs: Iterable) -> set[str]:
        asked = self.read_queue()
        self.queue = self.queue if asked is None else asked  # a controller that is busy answers later
        return {run.name for run in runs if job_name(run) in self.queue}

    def read_queue(self) -> dict[str, str] | None:
        """{name: number} of the user's jobs that wait or run; None if Slurm does not answer."""
        asked = subprocess.run(["squeue", "--me", "--noheader", "--format=%j %i"], capture_output=True, text=True)
        if asked.returncode:
            return None
        return dict(line.rsplit(maxsplit=1) for line in asked.stdout.splitlines() if " " in line)

    def reason(self, run) -> str | None:
        """What Slurm had to say of a run's last job, such as that its time was up."""
        files = sorted((run.folder / "slurm").glob("*.err"), key=os.path.getmtime)
        lines = files[-1].read_text(errors="replace").splitlines() if files else []
        return next((line for line in reversed(lines) if line.startswith("slurmstepd: error")), None)

    def stop(self, active: Collection, received: list[int]) -> None:
        """Takes from the queue those that wait; the others have Slurm's KillWait to save, 30 s by default.

        A second signal does not wait for them.
        """
        self.alive(active)  # reads the queue
        if numbers := [self.queue[name] for name in map(job_name, active) if name in self.queue]:
            subprocess.run(["scancel", *numbers], check=False)
        while self.alive(active) and len(received) < 2:
            time.sleep(1)


def job_name(run) -> str:
    """The same for every life of the run, and for it alone: by its name a job is found again."""
    return f"{run.name}-{hashlib.sha256(str(run.folder).encode()).hexdigest()[:8]}"


def pid(run) -> int | None:
    """Of the process that this sweep or one before it has started, unless that was killed before it could tell."""
    path = run.folder / "pid"
    return int(path.read_text() or 0) or None if path.exists() else None


def memory(pid: int | None) -> tuple[float, float]:
    """Bytes that a process holds now and has held at most; 0 when it has ended."""
    try:
        fields = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
        return tuple(float(fields.get(name, "0 kB").split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    except OSError:
        return 0.0, 0.0


def available_memory() -> float:
    """Bytes that can still be taken: of the machine's, and of a container's limit."""
    fields = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    free = float(fields["MemAvailable"].split()[0]) * 1024
    group = pathlib.Path("/sys/fs/cgroup")
    try:
        limit, used = (float((group / name).read_text()) for name in ("memory.max", "memory.current"))
        inactive = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
        return min(free, limit - used + float(inactive))
    except (OSError, ValueError, KeyError):  # no limit, which reads "max", or none that is told
        return free


def devices() -> tuple[list[str], int]:
    """(the GPUs' names for CUDA_VISIBLE_DEVICES, how many runs they and what else JAX would compute on are good for).

    Asked in another process, as whoever asks holds the devices. One run a GPU; one on all chips of a TPU's machine.
    """
    code = "import jax; print(jax.default_backend(), jax.local_device_count())"
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return [], sys.maxsize
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if asked.returncode:
        raise UserError(f"JAX finds no device: {(asked.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    backend, count = asked.stdout.split()[-2:]
    if backend == "cpu":
        return [], sys.maxsize
    if backend == "gpu":
        names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(int(count))))
        return names.split(","), int(count)
    return [], 1


CLUSTERS = {"local": Processes, "slurm": Slurm}
