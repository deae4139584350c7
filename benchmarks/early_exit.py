"""Two-stage inference against the whole network on every image: is the time saved that the multiply-adds promise?

    python benchmarks/early_exit.py [--quick] [--json FILE]

BasisNet-MobileNetV3 (configs/imagenet_basisnet_mv3.py, 224 px, batches of 64, float32) with random weights, on images
of noise; the threshold is the quantile of their confidences at which 40 % stop. Both take turns over the same batches;
medians, per batch. `ratio` is two-stage time over that of no early termination; `cpu_ratio` the same of processor time,
which other programs on the machine disturb less; `madds_ratio` that of the mean multiply-adds.

A second row has one image that does not stop: its specialist as a plain network, the kernels mixed beforehand, against
the specialist on a batch of one. `--quick` (under a minute) takes small networks and small images.
"""

import jax
import measure
import numpy as np
from basisnet_jax.configs import imagenet_basisnet_mv3

from basisnet_jax import cli, early_exit, madds, models, preprocess

SHARE = 0.4  # of the images stop


def rows(quick: bool) -> list[dict]:
    config = imagenet_basisnet_mv3.get_config("bases=4,width=0.35" if quick else "")
    config.dtype = "float32"
    size, batch_size, num_batches, turns = (96, 16, 4, 5) if quick else (224, 64, 6, 3)
    if quick:
        config.network.num_stages = config.preview.num_stages = 3
    config.image_size = size
    config.preview.image_size = min(config.preview.image_size, size)
    model = models.create(config)
    items = madds.count(model, preprocess.of(config).shape)
    functions = models.functional(model)  # leaves the model in evaluation mode
    random = np.random.default_rng(0)
    shape = num_batches, batch_size, size, size, 3
    # Of different contrast, since to a network with random weights all noise is much the same.
    images = (random.integers(0, 256, shape) * random.uniform(0.1, 1, (*shape[:2], 1, 1, 1))).astype(np.uint8)

    def prepare(images):
        return preprocess.of(config).normalize(images)

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
    batched = measure.compare(
        f"two-stage inference, batches of {batch_size} at {size} px",
        lambda: [*two_stage.stream(images)],
        no_early_termination,
        turns,
        num_batches,
    )
    batched["share"] = float(stopped)
    batched["madds_ratio"] = madds.with_early_termination(items, stopped) / madds.total(items)
    single = early_exit.TwoStage(model, early_exit.Rule(), 1, prepare)
    one = images[0, 0]
    name = f"one image at {size} px that does not stop"
    return [batched, measure.compare(name, lambda: single.single(one), lambda: single(one[None]), 4 * turns)]


def main() -> None:
    cli.keep_freed_memory()  # as the `basisnet` command does, for both sides
    flags = measure.flags(__doc__).parse_args()
    results = rows(flags.quick)
    for row in results:
        print(f"{row['name']}: {row['ours_ms']:.1f} ms, reference {row['reference_ms']:.1f} ms")
        print(f"  ratio of time {row['ratio']:.3f}, of processor time {row['cpu_ratio']:.3f}", end="")
        print(f", of mean MAdds {row['madds_ratio']:.3f}: {row['share']:.0%} stop" if "share" in row else "")
    measure.write(results, flags.json)


if __name__ == "__main__":
    main()
