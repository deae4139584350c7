"""The input pipeline against the bare decode-and-crop rate of the same machine; and how long a run takes to start.

    python benchmarks/input_pipeline.py [--quick] [--start] [--json FILE]

The pipeline is `train_batches` of configs/imagenet_basisnet_mv3.py (distorted crop, flip), without and with
AutoAugment, on JPEGs of 500x375 that are made from photographs inside scikit-image (extra `torch`) and scikit-learn,
so many that no epoch ends while it is timed: to build the pipeline of the next takes time that ImageNet, with 1.3M
images, does not notice. Two references take turns with it, in milliseconds an image, over the same files, threads and
batch, with crops drawn beforehand: one that decodes, crops and resizes without antialiasing, and one with
(`tf.image.resize`), as the pipeline does. Before each turn the other stream comes to rest, and the batches that this
one has made ahead are taken. `ratio` is the pipeline's time over the reference's; `rate` its inverse, the share of the
reference's images a second.

`--start` times a run of configs/digits.py (one epoch) instead, from the start of the process to its first step and of
compilation in it: JAX's persistent cache switched off, empty, and filled (JAX_COMPILATION_CACHE_DIR). The reference is
the run without a cache. `--quick` (under a minute) takes fewer files and turns.
"""

import itertools
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import measure
import numpy as np
import PIL.Image
import tensorflow as tf
from basisnet_jax.configs import imagenet_basisnet_mv3

from basisnet_jax.data import pipeline

sys.path.append(str(pathlib.Path(__file__).parents[1] / "experiments"))
import photographs

HEIGHT, WIDTH = 375, 500  # ImageNet's most common size
BATCH = 64
AHEAD = 6  # batches; no fewer than what a stream makes while nobody asks, in the other's turn


def write_jpegs(root: pathlib.Path, number: int, copies: int) -> None:
    """So many files, in a folder for each photograph: its parts of 4:3, in colour, at a quality near ImageNet's."""
    random = np.random.default_rng(0)
    for i, (name, image) in zip(range(number), itertools.cycle(photographs.photographs().items())):
        image = PIL.Image.fromarray(image).convert("RGB")
        width = min(image.width, image.height * WIDTH / HEIGHT) * random.uniform(0.5, 1)
        height = width * HEIGHT / WIDTH
        left, top = random.uniform(0, image.width - width), random.uniform(0, image.height - height)
        part = image.resize((WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        (root / "train" / name).mkdir(parents=True, exist_ok=True)
        file = root / "train" / name / f"{i:04}.jpg"
        part.save(file, quality=95)
        for copy in range(1, copies):
            file.with_stem(f"{file.stem}-{copy}").write_bytes(file.read_bytes())


def windows(number: int, least_area: float) -> np.ndarray:
    """Crops (top, left, height, width) [number, 4] as the pipeline draws them: by area and aspect, those that fit."""
    random, found = np.random.default_rng(0), []
    while len(found) < number:
        area, aspect = random.uniform(least_area, 1) * HEIGHT * WIDTH, random.uniform(3 / 4, 4 / 3)
        height, width = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
        if height <= HEIGHT and width <= WIDTH:
            found.append((random.integers(HEIGHT - height + 1), random.integers(WIDTH - width + 1), height, width))
    return np.array(found, np.int32)


def bare(files: list[pathlib.Path], config, antialias: bool):
    """Endless batches of images that are only decoded, cropped and resized."""
    encoded = tf.constant([file.read_bytes() for file in files])
    crops = tf.constant(windows(len(files), config.augment.crop))

    def load(i):
        image = tf.image.decode_and_crop_jpeg(encoded[i], crops[i], channels=3)
        return tf.cast(tf.image.resize(image, [config.image_size] * 2, antialias=antialias), tf.uint8)

    options = tf.data.Options()
    options.autotune.enabled = False
    ds = tf.data.Dataset.range(len(files)).repeat().map(load, num_parallel_calls=tf.data.AUTOTUNE)
    return ds.batch(BATCH).prefetch(2).with_options(options).as_numpy_iterator()


def settle(run) -> None:
    """Waits until no stream works ahead any more, then takes what this one has made ahead."""
    worked = time.process_time()
    time.sleep(0.1)
    while time.process_time() - worked > 0.01:
        worked = time.process_time()
        time.sleep(0.1)
    run(AHEAD)


def of_pipeline(quick: bool) -> list[dict]:
    number, batches, turns = (192, 5, 3) if quick else (960, 15, 5)
    config = imagenet_basisnet_mv3.get_config()
    config.batch_size, config.num_classes, config.train_split = BATCH, len(photographs.NAMES) + 2, "train"
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder, "photographs")
        write_jpegs(root, number, copies=2 + (turns + 1) * (AHEAD + batches) * BATCH // number)
        for split in ("validation", "test"):  # so that training has all the others
            first = next((root / "train").rglob("*.jpg"))
            (root / split / first.parent.name).mkdir(parents=True)
            (root / split / first.parent.name / first.name).write_bytes(first.read_bytes())
        config.dataset, config.data_dir = f"folder:{root}", str(pathlib.Path(folder, "tensorflow_datasets"))
        files = sorted((root / "train").rglob("????.jpg"))
        references = {"": bare(files, config, False), ", antialiased": bare(files, config, True)}
        rows = []
        for policy in ("", "imagenet"):
            config.augment.policy = policy
            for name, reference in references.items():
                stream = pipeline.open(config).train_batches()

                def take(batches_of, number):
                    for _ in range(number):
                        next(batches_of)

                row = measure.compare(
                    f"pipeline{' with AutoAugment' if policy else ''} / decode, crop, resize{name}",
                    lambda number=batches, stream=stream: take(stream, number),
                    lambda number=batches, reference=reference: take(reference, number),
                    turns,
                    batches * BATCH,
                    settle=settle,
                )
                row |= {"rate": 1 / row["ratio"], "cpu_rate": 1 / row["cpu_ratio"]}
                row["images_per_second"] = 1000 / row["ours_ms"]
                row["reference_per_second"] = 1000 / row["reference_ms"]
                rows.append(row)
    return rows


def started(folder: str, workdir: str, cache: str | None) -> tuple[float, float]:
    """Seconds from the start of a process until the digits run has logged its first step, and of compiling therein."""
    environment = dict(os.environ) | {"TFDS_DATA_DIR": f"{folder}/tensorflow_datasets", "JAX_LOG_COMPILES": "1"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if cache:
        environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    root, workdir = pathlib.Path(__file__).parents[1], pathlib.Path(folder, workdir)
    program = [sys.executable, "-c", "from basisnet_jax import cli; raise SystemExit(cli.main())", "train"]
    arguments = ["--config=configs/digits.py", f"--workdir={workdir}", "--config.log_every_steps=1"]
    metrics, messages = workdir / "metrics.jsonl", pathlib.Path(folder, "messages")
    with open(messages, "w") as file:
        begin = time.perf_counter()
        with subprocess.Popen([*program, *arguments], env=environment, cwd=root, stdout=file, stderr=file) as process:
            try:
                while not (metrics.exists() and metrics.stat().st_size):
                    if process.poll() is not None:
                        raise RuntimeError(messages.read_text())
                    time.sleep(0.01)
                elapsed = time.perf_counter() - begin
            finally:
                process.kill()
    times = re.findall(r"Finished XLA compilation of .* in ([\d.e-]+) sec", messages.read_text())
    return elapsed, sum(map(float, times))


def of_start(quick: bool) -> list[dict]:
    turns, times = (1 if quick else 5), {"without a cache": [], "with an empty cache": [], "with a filled cache": []}
    with tempfile.TemporaryDirectory() as folder:
        started(folder, "prepared", None)  # the data, and the system's cache of files
        for turn in range(turns):
            cache = f"{folder}/cache{turn}"
            for name, directory in zip(times, (None, cache, cache), strict=True):
                times[name].append(started(folder, f"{name}{turn}".replace(" ", "_"), directory))
    medians = {name: 1000 * np.median(of_name, axis=0) for name, of_name in times.items()}
    reference, _ = medians["without a cache"]
    return [
        {
            "name": f"digits, start to first step, {name}",
            "ours_ms": float(whole),
            "reference_ms": float(reference),
            "ratio": float(whole / reference),
            "compile_ms": float(compiling),
        }
        for name, (whole, compiling) in medians.items()
    ]


def main() -> None:
    parser = measure.flags(__doc__)
    parser.add_argument("--start", action="store_true", help="time the start of a run instead")
    flags = parser.parse_args()
    columns = {"ours_ms": ".3f", "reference_ms": ".3f", "ratio": ".2f"}
    if flags.start:
        rows, columns = of_start(flags.quick), columns | {"compile_ms": ".0f"}
    else:
        rows = of_pipeline(flags.quick)
        columns |= {"images_per_second": ".0f", "reference_per_second": ".0f", "rate": ".2f", "cpu_rate": ".2f"}
    print(measure.table(rows, columns))
    measure.write(rows, flags.json)


if __name__ == "__main__":
    main()
