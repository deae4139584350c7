"""Every config in configs/ builds, costs what is pinned here, splits its data soundly and takes a training step."""

import importlib
import math
import pathlib

import basisnet_jax.configs
import conftest
import jax
import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from basisnet_jax.configs import default
from flax import nnx

from basisnet_jax import madds, models, parsing, preprocess
from basisnet_jax.data import glyphs, pipeline
from basisnet_jax.data.source import Source
from basisnet_jax.networks import blocks, efficientnet, mobilenet_v2, mobilenet_v3
from basisnet_jax.training.step import build_step

# (config, argument): parameters, multiply-adds. The folder's are for ten classes.
PINNED = {
    ("digits", ""): (547_756, 1_713_600),
    ("imagenet_basisnet_mv3", ""): (48_734_888, 289_808_640),
    ("imagenet_basisnet_mv3", "bases=8,width=0.75"): (19_403_152, 199_058_224),
    ("imagenet_basisnet_mv3", "top_k=2"): (48_734_888, 252_517_680),  # 2 of the 16 multiply-adds for a mixed weight
    ("imagenet_basisnet_mv2", ""): (39_717_568, 366_479_168),
    ("imagenet_static", ""): (5_483_032, 216_589_760),
    ("imagenet_static", "network=mobilenet_v2,bases=1"): (3_504_872, 300_774_272),
    ("imagenet_static", "network=efficientnet_b0"): (5_288_548, 385_814_752),
    ("imagenet_static", "network=efficientnet_b2"): (9_109_994, 993_561_872),
    ("imagenet_condconv_mv2", ""): (27_549_144, 328_250_240),
    ("imagenet_condconv_mv2", "width=0.5"): (15_529_944, 112_628_032),
    ("imagenet_condconv_efficientnet_b0", ""): (24_013_284, 407_213_024),
    ("imagenet_condconv_efficientnet_b0", "bases=4"): (13_314_116, 396_513_888),
    ("imagenet_dy_mv2", ""): (11_149_736, 310_194_368),
    ("imagenet_dy_mv3", ""): (10_960_602, 223_345_624),
    ("cifar", ""): (19_505_260, 111_408_128),
    ("cifar", "model=static"): (2_236_682, 87_976_448),
    ("cifar", "model=static,classes=100"): (2_351_972, 88_091_648),
    ("cifar", "model=condconv"): (14_701_618, 102_220_544),
    ("cifar", "model=dy"): (9_881_546, 97_396_544),
    ("fashion_mnist", ""): (56_876, 392_776),
    ("fashion_mnist", "model=static"): (11_082, 326_816),
    ("fashion_mnist", "model=static,width=0.25"): (6_194, 195_016),
    ("fashion_mnist", "model=condconv"): (37_626, 357_088),
    ("fashion_mnist", "model=dy"): (25_140, 344_536),
    ("glyphs", ""): (90_706, 525_728),
    ("glyphs", "model=static"): (35_357, 449_280),
    ("folder", ""): (24_765_628, 265_841_728),
}

EXAMPLES = {  # of TFDS's data sets
    "digits": {"train": 1077, "validation": 360, "test": 360},
    "imagenet2012": {"train": 1_281_167, "validation": 50_000},
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "fashion_mnist": {"train": 60_000, "test": 10_000},
    "glyphs": {split: count * len(glyphs.LETTERS) for split, count in glyphs.EXAMPLES.items()},
}

# What is trained for two steps, and with how many stages of one block each: enough for all its kinds of layers.
STEPS = {
    ("digits", ""): 1,
    ("imagenet_basisnet_mv3", ""): 1,
    ("imagenet_basisnet_mv2", ""): 1,
    ("imagenet_static", ""): 1,
    ("imagenet_condconv_mv2", ""): 4,
    ("imagenet_condconv_efficientnet_b0", ""): 5,
    ("imagenet_dy_mv2", ""): 2,
    ("imagenet_dy_mv3", ""): 1,
    ("cifar", "model=basisnet,classes=100"): 1,
    ("fashion_mnist", ""): 1,
    ("glyphs", ""): 1,
    ("folder", ""): 1,
}
if conftest.AS_USERS:  # then of every kind of model; else the configs above have them
    STEPS |= {("fashion_mnist", f"model={kind}"): 1 for kind in ("basisnet", "static", "condconv", "dy")}


def get_config(name, arg=""):
    return importlib.import_module(f"basisnet_jax.configs.{name}").get_config(arg)


def test_every_config_is_tested():
    folder = pathlib.Path(basisnet_jax.configs.__file__).parent
    names = {path.stem for path in folder.glob("*.py")} - {"__init__", "default", *parsing.HELPERS}
    assert names == {name for name, _ in PINNED} == {name for name, _ in STEPS}


def is_quick(name, arg):
    return not arg and name in ("imagenet_basisnet_mv3", "digits", "fashion_mnist", "glyphs", "folder")


@pytest.mark.parametrize(
    ("name", "arg"),
    [pytest.param(name, arg, marks=[] if is_quick(name, arg) else [pytest.mark.slow]) for name, arg in PINNED],
)
def test_parameters_and_multiply_adds(name, arg):
    config = get_config(name, arg)
    config.num_classes = config.num_classes or 10
    model = models.create_abstract(config)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    cost = madds.total(madds.count(model, preprocess.of(config).shape))
    assert (parameters, cost) == PINNED[name, arg]


@pytest.mark.parametrize("name", sorted({name for name, _ in PINNED} - {"folder"}))
def test_splits_are_disjoint_and_waste_nothing(name):
    config = get_config(name)
    sizes = EXAMPLES[config.dataset]
    infos = tfds.core.splits.SplitDict(
        [
            tfds.core.SplitInfo(name=split, shard_lengths=[size], num_bytes=0, filename_template=None)
            for split, size in sizes.items()
        ]
    )
    parts = [
        (part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to)
        for split in (config.train_split, config.validation_split, config.test_split)
        for part in tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    ]
    for split, size in sizes.items():
        spans = sorted((begin, end) for name, begin, end in parts if name == split)
        assert [begin for begin, _ in spans] + [size] == [0] + [end for _, end in spans]


def test_arguments():
    assert default.parse_arg("bases=4,width=0.5", bases=16, width=1.0, seed=0) == dict(bases=4, width=0.5, seed=0)
    for arg, words in (("basis=4", "'basis' is unknown, expected bases"), ("bases=x", "bases=<int>")):
        with pytest.raises(ValueError, match=words):
            default.parse_arg(arg, bases=16)


@pytest.mark.parametrize("name", sorted({name for name, _ in PINNED}))
def test_every_config_takes_bases_width_and_seed(name):
    bases = 1 if name == "imagenet_static" else 3
    config = get_config(name, f"bases={bases},width=0.3,seed=7")
    assert (config.basis.num_bases, config.network.width, config.seed) == (bases, 0.3, 7)


@pytest.mark.parametrize(
    ("name", "arg", "message"),
    [
        ("imagenet_static", "bases=8", "bases=8, but a static network has bases=1"),
        ("cifar", "model=static,bases=8", "bases=8, but a static network has bases=1"),
        ("fashion_mnist", "model=dynamic", "model=dynamic, expected one of basisnet, static, condconv, dy"),
        ("cifar", "classes=20", "classes=20, expected 10 or 100"),
    ],
)
def test_wrong_arguments_end_in_one_line(name, arg, message):
    with pytest.raises(ValueError, match=message):
        get_config(name, arg)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Small data sets under TFDS's names, with its features and versions, and a folder of images."""
    data_dir = tmp_path_factory.mktemp("data")
    for name in EXAMPLES.keys() - {"digits"}:
        prepare_small(name, data_dir)
    for label in ("cat", "dog"):
        (data_dir / "images" / label).mkdir(parents=True)
        for i in range(20):
            PIL.Image.new("RGB", (50, 40), (10 * i, 99, 200)).save(data_dir / "images" / label / f"{i}.jpg")
    return data_dir


def prepare_small(name, data_dir):
    """Eight examples, all in split train. (`tfds.testing.mock_data` has none on disk, which the pipeline wants.)"""
    info = tfds.builder(name, data_dir=data_dir).info

    def example(i):
        make = {
            tfds.features.Image: lambda feature: np.full([side or 40 for side in feature.shape], 30 * i, np.uint8),
            tfds.features.ClassLabel: lambda feature: i % feature.num_classes,
            tfds.features.Text: lambda _: str(i),
        }
        return {key: make[type(feature)](feature) for key, feature in info.features.items()}

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = info.version
        url_infos = None

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=info.features)

        def _split_generators(self, _):
            return {"train": ((i, example(i)) for i in range(8))}

        def _generate_examples(self):
            raise NotImplementedError

    Small.name = name
    Small(data_dir=data_dir).download_and_prepare()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arg"), STEPS)
def test_training_steps(name, arg, data_dir, monkeypatch):
    def first_blocks(*args):
        return tuple(stage[:1] for stage in blocks.adapted(*args))

    for module in (efficientnet, mobilenet_v2, mobilenet_v3):
        monkeypatch.setattr(module, "adapted", first_blocks)
    bases = "" if "static" in name + arg else "bases=2"
    config = get_config(name, ",".join(filter(None, [arg, bases, "width=0.25"])))
    if name == "folder":
        config.dataset = f"folder:{data_dir / 'images'}"
    config.data_dir = str(data_dir)
    config.train_split = "train"
    config.batch_size = 4
    config.image_size = min(config.image_size, 32)
    for network, num_stages in ((config.network, STEPS[name, arg]), (config.preview, 1)):
        network.num_stages = num_stages
        network.stage_strides = network.stage_strides and network.stage_strides[:num_stages]
        network.head_features = 16
    config.preview.image_size = 16
    source = Source.find(config)
    config = source.completed(config)
    data = pipeline.open(config, source)

    functions = models.functional(models.create(config))
    step = build_step(config, functions, data.steps_per_epoch())
    state = step.create_state(functions.params, functions.batch_stats)
    batches = data.train_batches()
    key = jax.random.key(0)
    # Most of the time is compiling, so the compiler is asked for little.
    run = step.run.lower(state, next(batches), key).compile(conftest.QUICK_COMPILATION)
    for _ in range(2):  # at the first the learning rate is still 0
        state, metrics = run(state, next(batches), key)
        assert all(math.isfinite(value) for value in jax.device_get(metrics).values()), metrics
    changed = jax.tree.map(lambda old, new: bool((np.asarray(old) != new).any()), functions.params, state.params)
    assert np.mean(jax.tree.leaves(changed)) > 0.9, changed  # not all: a hidden layer of two ReLUs may be dead
