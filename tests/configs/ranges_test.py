"""A value that a field cannot have ends the command in one line that names the field, before anything is written."""

import os

import pytest
from basisnet_jax.configs import default, digits, ranges

from basisnet_jax import create_model, fit, parsing
from basisnet_jax.data import pipeline
from basisnet_jax.errors import UserError

# Fields of configs/digits.py, what they are set to, and the field that the line names if it is not the last one set.
BAD = [
    *((f"batch_size={value}",) for value in (-8, 0)),
    (f"seed={10**400}",),
    *((f"eval_batch_size={value}",) for value in (0, -1)),
    *((f"num_epochs={value}",) for value in (0, -3, "nan", "inf", "1e400")),
    *((f"seed={value}",) for value in (2**31, -(2**31) - 1)),
    ("dataset=",),
    ("dataset=folder:gs://bucket/images",),
    ("dataset=folder:~no_such_user/images",),
    ("bad_images=ignore",),
    ("data_dir=~no_such_user/data",),
    ("train_split=",),
    ("validation_split=",),
    ("test_split= ",),
    ("num_classes=-1",),
    ("channels=2",),
    *((f"image_size={value}",) for value in (0, -32)),
    ("mean=0.1,0.2,0.3",),
    ("mean=1e999",),
    ("mean=124.0",),
    ("mean=()",),
    ("stddev=0.0",),
    ("stddev=0.1,0.2",),
    ("shuffle_buffer_size=0",),
    ("augment.shift=-0.1",),
    ("augment.rotation=200",),
    ("augment.zoom=1",),
    ("augment.crop=1.5",),
    ("augment.policy=auto",),
    ("augment.layers=0",),
    ("augment.magnitude=-1",),
    ("augment.erasing=2",),
    ("augment.mixup=-1",),
    ("augment.cutmix=inf",),
    ("resize=nearest",),
    *((f"eval_crop={value}",) for value in (0, 1.5)),
    ("model=both",),
    ("dtype=float16",),
    ("network.name=",),
    *((f"network.width={value}",) for value in (-1, 0, "nan")),
    ("preview.width=-1",),
    ("network.head_features=0",),
    ("network.drop_connect=1",),
    ("network.stem_stride=0",),
    ("network.num_stages=-1",),
    ("network.num_stages=0",),
    ("network.stage_strides=(0,2,2,2)",),
    ("network.stage_strides=2,2",),  # of 4 stages
    ("preview.stage_strides=(2,2,2)",),
    ("network.dropout=1.0",),
    ("network.padding=valid",),
    ("network.epsilon=0",),
    ("network.momentum=1",),
    ("preview.image_size=0",),
    ("basis.num_bases=0",),
    ("basis.layers=(",),
    ("basis.init=zeros",),
    ("coefficients.activation=relu",),
    ("coefficients.temperature=0",),
    *((f"coefficients.top_k={value}",) for value in (-1, 99)),
    ("coefficients.annealing_epochs=-1",),
    ("coefficients.dropout=1",),
    ("coefficients.dropout_per=layer",),
    ("routing.units=[",),
    ("routing.hidden=-1",),
    ("init_from=s3://bucket/run",),
    ("preview_init_from=s3://bucket/run",),
    ("init_noise=-0.1",),
    ("distillation.teacher=hdfs://bucket/run",),
    ("distillation.weight=1.5",),
    ("distillation.temperature=0",),
    ("distillation.heads=last",),
    ("preview_loss_weight=-1",),
    ("balance_loss_weight=-0.1",),
    ("label_smoothing=2",),
    ("optimizer.name=sgd",),
    ("optimizer.learning_rate=-0.1",),
    ("optimizer.learning_rate=nan",),
    ("optimizer.schedule=step",),
    ("optimizer.warmup_epochs=-1",),
    ("optimizer.decay_rate=1.5",),
    ("optimizer.decay_epochs=0",),
    ("optimizer.weight_decay=-1",),
    ("optimizer.clip_norm=-1",),
    ("optimizer.momentum=1",),
    ("optimizer.second_moment_decay=1.0",),
    ("optimizer.epsilon=0",),
    ("optimizer.coefficient_rate=-8",),
    ("ema_decay=1.5",),
    ("fsdp=-1",),
    ("batch_norm_groups=0",),
    ("batch_norm_groups=5",),
    ("batch_norm_groups=32", "accumulate=4", "batch_norm_groups"),  # of 16 images in a pass
    ("accumulate=3",),
    ("accumulate=128",),
    ("max_drop=30",),
    ("log_every_steps=0",),
    ("eval_every_epochs=0",),
    ("checkpoint_every_steps=0",),
    ("keep_checkpoints=0",),
]
# What only the data tell.
BAD_FOR_THE_DATA = [
    ("num_epochs=0.01", "num_epochs=0.01, expected at least one step: an epoch has 16, of config.batch_size=64"),
    ("train_split=tarin", "train_split='tarin', expected a split of digits: train (1077), "),
    ("train_split=train[:0]", "train_split='train[:0]', expected a split with examples in it"),
    ("validation_split=val", "validation_split='val', expected a split of digits"),
    ("validation_split=validation[:0]", "validation_split='validation[:0]', expected a split with examples in it"),
    ("test_split=test[", "test_split='test[', expected a split of digits"),
    ("train_eval_split=trian", "train_eval_split='trian', expected a split of digits"),
]


@pytest.fixture(scope="module")
def data_dir(data_dir):
    """With the digits in it: TFDS tells at length when it prepares them."""
    pipeline.open(parsing.read_config(["--config=digits", f"--config.data_dir={data_dir}"]))
    return data_dir


def name(fields):
    return " ".join(fields[:2])


@pytest.mark.odd("config")
@pytest.mark.parametrize("fields", BAD, ids=name)
def test_a_field_out_of_its_range(refused, tmp_path, fields):
    given = [field for field in fields if "=" in field]
    line = refused("train", "--config=digits", f"--workdir={tmp_path}/run", *(f"--config.{field}" for field in given))
    named = fields[-1].partition("=")[0]
    assert line.startswith(f"config.{named}=") and ", expected " in line, line
    assert not os.listdir(tmp_path)


@pytest.mark.odd("config")
@pytest.mark.parametrize(("field", "told"), BAD_FOR_THE_DATA, ids=lambda text: text.partition(",")[0])
def test_a_field_that_does_not_go_with_the_data(refused, tmp_path, data_dir, field, told):
    line = refused(
        "train", "--config=digits", f"--config.data_dir={data_dir}", f"--workdir={tmp_path}/run", f"--config.{field}"
    )
    assert line.startswith(f"config.{told}"), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("config.batchsize = 3", "config has no field 'batchsize'; did you mean config.batch_size?"),
        ("config.optimizer.lr = 3", "config.optimizer has no field 'lr'; did you mean config.optimizer.learning_rate?"),
        ("config.optimizer.warmup = 3", "no field 'warmup'; did you mean config.optimizer.warmup_epochs?"),
        ("config.optimizer.foo = 3", "no field 'foo'; configs/default.py lists all fields"),
        ("config.optimiser = {'name': 'adamw'}", "no field 'optimiser'; did you mean config.optimizer.name?"),
        ("del config.seed", "config.seed is missing; start the config from configs/default.py"),
        ("config = type(config)({'batch_size': '64'})", "config.seed is missing"),
        ("import numpy; config.num_epochs = numpy.nan", "config.num_epochs=nan, expected a number above 0"),
        ("del config.batch_size; config.batch_size = '64'", "config.batch_size='64', expected a whole number above 0"),
        ("del config.batch_size; config.batch_size = True", "config.batch_size=True, expected a whole number above 0"),
        ("del config.mean; config.mean = 0.5", "config.mean=0.5, expected numbers from 0 to 1, such as (0.5,)"),
        (
            "config.network = {'name': 'mine:net', 'act': len}",
            "config.network.act=<built-in function len>, expected plain",
        ),
        (
            "del config.optimizer; config.optimizer = 3",
            "config.optimizer=3, expected its fields, such as config.",
        ),
    ],
)
@pytest.mark.odd("config")
def test_a_config_file_that_invents_fields(refused, tmp_path, lines, told):
    file = tmp_path / "mine.py"
    body = "\n    ".join(["config = default.get_config()", lines, "return config"])
    file.write_text(f"from basisnet_jax.configs import default\n\n\ndef get_config(arg=''):\n    {body}\n")
    line = refused("train", f"--config={file}", f"--workdir={tmp_path}/run")
    assert told in line and not (tmp_path / "run").exists(), line


def test_the_table_has_every_field_and_every_default_is_in_its_range():
    fields = ranges.flat(default.get_config().to_dict())
    assert ranges.RANGES.keys() == fields.keys()
    assert [field for field, of in ranges.RANGES.items() if not of.holds(fields[field])] == []


def test_every_verb_that_takes_a_config_checks_it(refused, tmp_path):
    told = "config.network.width=-1.0, expected a number above 0, or None"
    bad = ("--config=digits", "--config.network.width=-1")
    assert told in refused("madds", *bad)
    assert told in refused("plan", *bad, "--topology=v5e:1x1")
    sweep = tmp_path / "sweep.py"
    sweep.write_text(
        "CONFIG = 'digits'\ndef sweep():\n    yield {'seed': 0}\n    yield {'seed': 1, 'config.network.width': -1}"
    )
    assert told in refused("sweep", f"--sweep={sweep}", f"--workdir={tmp_path}/runs")
    assert os.listdir(tmp_path) == ["sweep.py"]
    (tmp_path / "mine.py").write_text(
        "from basisnet_jax.configs import digits\ndef get_config():\n    config = digits.get_config()\n"
        "    config.preview = {'name': 'mine:net'}\n    return config"
    )
    sweep.write_text(f"CONFIG = '{tmp_path}/mine.py'\ndef sweep():\n    yield {{'config.seed': 0}}")
    told = "config.preview.image_size is missing"
    assert told in refused("sweep", f"--sweep={sweep}", f"--workdir={tmp_path}/runs")
    assert told in refused("madds", f"--config={tmp_path}/mine.py", "--config.image_size=16")


def test_python_calls_check_too():
    for field, value in {"width": -1.0, "num_bases": 0, "image_size": 0, "channels": 2, "dtype": "float16"}.items():
        with pytest.raises(ValueError, match=f"create_model.*: config.*={value!r}, expected"):
            create_model("basisnet_mobilenet_v2", **{field: value})
    with pytest.raises(ValueError, match="num_classes=0, expected a whole number above 0"):
        create_model("mobilenet_v2", num_classes=0)
    model = create_model("mobilenet_v2", 2, width=0.1, image_size=16, network__num_stages=1, batch_norm_groups=3)
    batch = {"image": [[[[0.0] * 3] * 16] * 16] * 2, "label": [0, 1]}
    for options, told in [
        ({"num_steps": 0}, "num_steps=0, expected"),
        ({"num_steps": 2.5}, "num_steps=2.5, expected"),
        ({"num_steps": 1, "validate_every": 0}, "validate_every=0, expected"),
        ({"num_steps": 1, "learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"num_steps": 1, "balance_weight": -1.0}, "balance_loss_weight=-1.0"),
        ({"num_steps": 1, "log_every": 0}, "log_every=0, expected"),
        ({"num_steps": 1, "max_drop": float("nan")}, "max_drop=nan"),
    ]:
        with pytest.raises(ValueError, match=told):
            fit(model, [batch], **options)


def test_a_network_of_ones_own_may_have_arguments_of_its_own():
    config = digits.get_config()
    config.network.name, config.network.depth = "mine:Network", 3
    ranges.check(config)
    config.preview.depth = 3
    with pytest.raises(UserError, match="config.preview has no field 'depth'"):
        ranges.check(config)


def test_what_is_read_from_a_workdir_is_not_checked(tiny, tmp_path):
    from basisnet_jax.workdir import runs

    config = tiny(label_smoothing=1.0)
    runs.claim(config, str(tmp_path))
    assert runs.load_config(str(tmp_path)).label_smoothing == 1.0
    with pytest.raises(UserError, match="config.label_smoothing=1.0"):
        parsing.resolve(config)
