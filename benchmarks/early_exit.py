"""Two-stage inference against the whole network on every image: is the time saved that the multiply-adds promise?

    python benchmarks/early_exit.py [--quick] [--json FILE]

BasisNet-MobileNetV3 (configs/imagenet_basisnet_mv3.py, 224 px, batches of 64, float32) with random weights, on images
of noise; the threshold is the quantile of their confidences at which 40 % stop. Both take turns over the same batches;
medians, per batch. `ratio` is two-stage time over that of no early termination, `madds_ratio` that of the mean
multiply-adds. A second row has one image at a time that does not stop: its specialist as a plain network with kernels
mixed once, against the specialist on a batch of one. `--quick` (under a minute) takes small networks and small images.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from basisnet_jax.configs import imagenet_basisnet_mv3

from basisnet_jax import early_exit, evaluate, madds, models

SHARE = 0.4  # of the images stop


def medians(ours: Callable[[], None], reference: Callable[[], None], turns: int) -> tuple[float, float]:
    """Milliseconds of each; the first turn, which compiles, does not count."""
    times = [], []
    for turn in range(turns + 1):
        for run, of_run in zip((ours, reference), times, strict=True):
            begin = time.perf_counter()
            run()
            if turn:
                of_run.append(1000 * (time.perf_counter() - begin))
    return tuple(map(statistics.median, times))


def measure(quick: bool) -> list[dict]:
    config = imagenet_basisnet_mv3.get_config("bases=4,width=0.35" if quick else "")
    config.dtype = "float32"
    size, batch_size, num_batches, turns = (96, 16, 4, 5) if quick else (224, 64, 4, 5)
    if quick:
        config.network.num_stages = config.preview.num_stages = 3
    config.image_size = size
    config.preview.image_size = min(config.preview.image_size, size)
    items = madds.count(models.create_abstract(config), evaluate.image_shape(config))
    model = models.create(config)
    functions = models.functional(model)  # leaves the model in evaluation mode
    random = np.random.default_rng(0)
    shape = num_batches, batch_size, size, size, 3
    # Of different contrast, since to a network with random weights all noise is much the same.
    images = (random.integers(0, 256, shape) * random.uniform(0.1, 1, (*shape[:2], 1, 1, 1))).astype(np.uint8)

    def prepare(images):
        return evaluate.normalize(images, config)

    @jax.jit
    def whole(params, batch_stats, images):
        return functions.evaluate(params, batch_stats, prepare(images))

    def no_early_termination():  # every batch is on its way before the first one's answers are awaited
        outputs = [whole(functions.params, functions.batch_stats, batch).logits for batch in images]
        return [np.asarray(logits) for logits in outputs]

    previews = [whole(functions.params, functions.batch_stats, batch).preview_logits for batch in images]
    confidences = np.concatenate([early_exit.confidence(logits) for logits in previews])
    rule = early_exit.Rule(float(np.quantile(confidences, 1 - SHARE)))
    two_stage = early_exit.TwoStage(model, rule, batch_size, prepare)
    stopped = np.mean([answers.stopped for answers in two_stage.stream(images)])
    batched = row(
        f"two-stage inference, batches of {batch_size} at {size} px",
        [time / num_batches for time in medians(lambda: [*two_stage.stream(images)], no_early_termination, turns)],
        share=float(stopped),
        madds_ratio=madds.with_early_termination(items, stopped) / madds.total(items),
    )
    two_stage = early_exit.TwoStage(model, early_exit.Rule(), 1, prepare)
    image = images[0, 0]
    single = row(
        f"one image at {size} px that does not stop",
        medians(lambda: two_stage.single(image), lambda: two_stage(image[None]), 4 * turns),
        share=0.0,
        madds_ratio=1.0,
    )
    return [batched, single]


def row(name: str, times: tuple[float, float], **others: float) -> dict:
    ours, reference = times
    return {"name": name, "ours_ms": ours, "reference_ms": reference, "ratio": ours / reference, **others}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="where the rows go, as JSON")
    parser.add_argument("--quick", action="store_true")
    flags = parser.parse_args()
    rows = measure(flags.quick)
    for each in rows:
        print(
            f"{each['name']}: {each['ours_ms']:.1f} ms, reference {each['reference_ms']:.1f} ms, "
            f"time ratio {each['ratio']:.3f}, MAdds ratio {each['madds_ratio']:.3f} ({each['share']:.0%} stop), "
            f"time over MAdds {each['ratio'] / each['madds_ratio']:.3f}"
        )
    if flags.json:
        with open(flags.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
