"""Batches for training and evaluation: TFDS and tf.data in, numpy arrays of this host's share out.

The training batch of step t is a function of (config.seed, t) and of the host alone. A run that resumes at step t
therefore needs no saved position: `train_batches(config, first_step=t)` goes on as if nothing had happened.

Examples are shuffled undecoded, so that skipping what a resumed epoch has already seen costs next to nothing;
decoding and augmentation come after the skip. A large dataset is read anew by one pipeline an epoch; a small one is
kept in memory and fed by one pipeline for the whole run, since building a pipeline takes longer than a short epoch.

What is read and how follows from the data fields of configs/default.py, the seed, and the two batch sizes (over all
hosts). Images leave as uint8 [b, image_size, image_size, channels], labels as int32 [b], where b is this host's share
of the batch.
"""

import contextlib
import difflib
import functools
import sys
from collections.abc import Iterator

import jax
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from clu import deterministic_data

import basisnet_jax.data.digits
import basisnet_jax.data.glyphs  # noqa: F401  (both register their names with TFDS)
from basisnet_jax import preprocess
from basisnet_jax.data import augment, autoaugment, decoding, folder, imagenet, operations
from basisnet_jax.errors import UserError
from basisnet_jax.preprocess import Preprocess

Batches = Iterator[dict[str, np.ndarray]]

_IN_MEMORY_BYTES = 50e6  # A dataset no bigger than this on disk is read once and kept, still encoded.

# AutoGraph would rewrite every function that tf.data maps, and all that it calls, to let Python's `if` and `for` depend
# on tensors. Nothing here asks for that, and without it a run starts seconds earlier.
_plain = tf.autograph.experimental.do_not_convert


@_plain
def train_batches(config, first_step: int = 0, *, ids=False, process_index=None, process_count=None) -> Batches:
    """Endless shuffled, augmented batches {'image', 'label'}, the first of them that of step `first_step`.

    With `ids` also 'id', bytes [b]: TFDS's name of each example, the same in every run and split.

    An epoch is `steps_per_epoch(config)` full batches, sees each example at most once, and leaves out the few that do
    not fill a batch, other ones each time. The host's index and count are JAX's unless given.
    """
    ds_builder = builder(config)
    index, count = _host(process_index, process_count)
    split = tfds.even_splits(config.train_split, count, drop_remainder=True)[index]
    steps, batch_size = steps_per_epoch(config, process_count=count), _per_host(config, "batch_size", count)
    epoch, skip = divmod(first_step, steps)
    prepare = _prepared(ds_builder, config, ids)

    @_plain
    def batches(ds):
        return _to_numpy(ds.map(prepare, num_parallel_calls=tf.data.AUTOTUNE), batch_size)

    if _fits_in_memory(ds_builder):
        examples = _in_memory(ds_builder.data_dir, split)

        def one_epoch(epoch):
            words = _random_words(config.seed, epoch, index)
            order = tf.random.experimental.stateless_shuffle(tf.range(len(examples["label"])), [words[0], 0])
            ds = tf.data.Dataset.from_tensor_slices(order[: steps * batch_size]).enumerate()
            return ds.map(lambda i, row: ({name: column[row] for name, column in examples.items()}, i, words))

        ds = tf.data.Dataset.range(epoch, sys.maxsize).flat_map(one_epoch)
        return batches(ds.skip(skip * batch_size))

    def streamed(epoch, skip):
        while True:
            words = _random_words(config.seed, epoch, index)
            seed = int(words[0])
            ds = _read(ds_builder, split, seed).shuffle(config.shuffle_buffer_size, seed=seed)
            ds = ds.enumerate().skip(skip * batch_size)
            yield from batches(ds.map(_plain(lambda i, example, words=words: (example, i, words))))
            epoch, skip = epoch + 1, 0

    return streamed(epoch, skip)


@_plain
def eval_batches(config, split: str, *, ids=False, process_index=None, process_count=None) -> Batches:
    """Batches {'image', 'label', 'mask'} of every example once, in order, as they are; `ids` as for training.

    All hosts make the same number of full batches and together hold every example once, for any size of the split.
    `mask`, bool [b], is False at the rows of zeros that fill up the end.
    """
    ds_builder = builder(config)
    index, count = _host(process_index, process_count)
    batch_size = _per_host(config, "eval_batch_size", count)
    shares = tfds.even_splits(split, count)  # Remainders go to the first: no host has more than host 0.
    num_own, num_first = _count(ds_builder, shares[index]), _count(ds_builder, shares[0])
    num_batches = -(-num_first // batch_size)
    # TFDS refuses to read an empty share, so a host without examples takes none of somebody else's.
    share = shares[index if num_own else 0]
    if _fits_in_memory(ds_builder):
        ds = tf.data.Dataset.from_tensor_slices(_in_memory(ds_builder.data_dir, share))
    else:
        ds = _read(ds_builder, share)
    ds = ds.take(num_own).map(_prepared(ds_builder, config, ids), num_parallel_calls=tf.data.AUTOTUNE)
    ds = deterministic_data.pad_dataset(ds, batch_dims=[batch_size], pad_up_to_batches=num_batches, cardinality=num_own)
    return _to_numpy(ds, batch_size)


def steps_per_epoch(config, *, process_count: int | None = None) -> int:
    """Full batches in an epoch of training; the same on all hosts, since shares are cut to equal size."""
    count = _host(0, process_count)[1]
    num_share = _count(builder(config), tfds.even_splits(config.train_split, count, drop_remainder=True)[0])
    steps = num_share // _per_host(config, "batch_size", count)
    if not steps:
        available = f"the {num_share * count} examples of {config.dataset} {config.train_split!r} on {count} host(s)"
        raise UserError(f"config.batch_size is {config.batch_size}: {available} do not make one full batch")
    return steps


def num_examples(config, split: str) -> int:
    """Examples in a TFDS split string such as 'train', 'train[:90%]' or 'train+validation'."""
    return _count(builder(config), split)


def completed(config):
    """The config with a `num_classes` of 0 replaced by the number of classes of its dataset, else unchanged."""
    if config.num_classes:
        return config
    config = config.copy_and_resolve_references()
    config.num_classes = builder(config).info.features["label"].num_classes
    return config


def class_names(config) -> list[str]:
    """The dataset's class names by label: ImageNet's readable ones for its ids; numbers where there are no names."""
    return imagenet.readable(builder(config).info.features["label"].names)


def fingerprint(config) -> str:
    """What identifies the prepared data: the dataset's full name, version included, and how many examples it has."""
    ds_builder = builder(config)
    sizes = {name: split.num_examples for name, split in sorted(ds_builder.info.splits.items())}
    return f"{ds_builder.info.full_name} {sizes}"


def evaluation_image(seen: Preprocess, encoded: bytes) -> np.ndarray:
    """An encoded RGB or grey image, pixel for pixel as evaluation sees it: uint8 [image_size, image_size, channels]."""
    _keep_tensorflow_off_accelerators()
    feature = tfds.features.Image(shape=(None, None, 3))
    return decoding.centre(seen, feature, encoded).numpy()


def builder(config) -> tfds.core.DatasetBuilder:
    """The TFDS builder of config.dataset, in agreement with the config and prepared on disk.

    Raises:
      UserError: the name or the way of resizing is unknown; the dataset's features, number of classes (unless it is to
        be found out) or number of channels are not what the config says; or the data are not there and cannot be
        fetched.
    """
    decoding.check_resize(config.resize)
    _keep_tensorflow_off_accelerators()
    name = config.dataset
    try:
        if name.startswith("folder:"):
            path = name.removeprefix("folder:")
            if not path:
                raise UserError("config.dataset='folder:' names no folder, expected folder:/path/to/images")
            ds_builder = folder.Folder(path, config.bad_images, data_dir=config.data_dir or None)
        else:
            ds_builder = tfds.builder(name, data_dir=config.data_dir or None)
    except ValueError as error:  # DatasetNotFoundError, an unknown configuration, or a name that cannot be one
        known = set(tfds.list_builders(with_community_datasets=False))
        close = difflib.get_close_matches(name.split("/")[0], sorted(known))
        hint = f"the closest known: {', '.join(close)}" if close else "`digits` and the names of TFDS are known"
        raise UserError(f"unknown dataset {name!r}; {hint}") from error
    features = dict(ds_builder.info.features.items())
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise UserError(f"{name} has no features 'image' and 'label': it is not an image classification dataset")
    channels = image.shape[-1]
    if image.np_dtype != np.uint8 or channels not in (1, 3):
        raise UserError(f"{name} has {image.np_dtype} images with {channels} channels; expected uint8 with 1 or 3")
    if config.channels not in (1, 3):
        raise UserError(f"config.channels is {config.channels}, but must be 1 or 3; {name} has {channels}")
    if config.num_classes not in (0, label.num_classes):
        raise UserError(f"config.num_classes is {config.num_classes}, but {name} has {label.num_classes} classes")
    return ds_builder if ds_builder.data_path.exists() else _prepare(name, ds_builder)


def _prepare(name: str, ds_builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # TFDS announces its work on stdout, which is for results.
            ds_builder.download_and_prepare()
    except UserError:
        raise
    except Exception as error:  # Whatever TFDS, the network or the disk may raise.
        # TFDS moves a finished folder into place in one step. Should another process have been faster, then ours
        # could not be moved there, and theirs is as good.
        if not ds_builder.data_path.exists():
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"dataset {name!r} is not in {ds_builder.data_dir} and could not be prepared ({reason}); run "
                f"`tfds build {name} --data_dir={ds_builder.data_dir_root}` where there is internet, or point "
                "config.data_dir to a folder that has it"
            ) from error
    return tfds.builder_from_directory(ds_builder.data_dir)


@functools.cache
def _keep_tensorflow_off_accelerators():
    # TensorFlow only reads data here, but would take all memory of the GPUs that JAX is to use.
    tf.config.set_visible_devices([], "GPU")


def _host(process_index, process_count):
    return (
        jax.process_index() if process_index is None else process_index,
        jax.process_count() if process_count is None else process_count,
    )


def _per_host(config, field, count):
    if config[field] % count:
        raise UserError(f"config.{field} is {config[field]}, which {count} hosts cannot share equally")
    return config[field] // count


def _count(ds_builder, split):
    try:
        return ds_builder.info.splits[split].num_examples
    except (ValueError, KeyError) as error:
        known = ", ".join(f"{part} ({info.num_examples})" for part, info in ds_builder.info.splits.items())
        name = split if isinstance(split, str) else split.split  # a host's share names the split it is a share of
        raise UserError(f"{ds_builder.name} has no split {name!r}; it has {known}") from error


def _random_words(seed, epoch, process_index):
    """Six random int64: for the order of an epoch on this host, and for each of five kinds of augmentation.

    By TensorFlow and not by JAX, whose operations would queue behind the training steps on the accelerator.
    """
    key = tf.stack([tf.cast(seed, tf.int64), tf.cast(epoch, tf.int64)])
    key = tf.random.experimental.stateless_fold_in(key, tf.cast(process_index, tf.int64))
    return tf.random.stateless_uniform([6], key, minval=None, maxval=None, dtype=tf.int64)


def _fits_in_memory(ds_builder):
    return ds_builder.info.dataset_size <= _IN_MEMORY_BYTES


@functools.lru_cache(maxsize=8)
def _in_memory(directory, split):
    """All of `split`, {'image': string [n], 'label': int64 [n], 'tfds_id': string [n]}, the images undecoded."""
    ds = _read(tfds.builder_from_directory(directory), split)
    ds = ds.map(lambda example: {name: example[name] for name in ("image", "label", "tfds_id")})
    return ds.batch(ds.cardinality()).get_single_element()


@_plain
def _read(ds_builder, split, seed=None):
    """Dataset of the undecoded examples of `split`, once; its files shuffled if there is a seed."""
    read_config = tfds.ReadConfig(shuffle_seed=seed, add_tfds_id=True)
    decoders = {"image": tfds.decode.SkipDecoding()}
    return ds_builder.as_dataset(
        split=split, shuffle_files=seed is not None, read_config=read_config, decoders=decoders
    )


def _prepared(ds_builder, config, ids=False):
    """Function of an undecoded example and, for training, its index in the epoch and the epoch's random words."""
    seen, amounts = preprocess.of(config), config.augment
    feature = ds_builder.info.features["image"]

    @tf.function(autograph=False)  # Traced once, not again for every epoch.
    def prepare(example, index=None, words=None):
        row = {"label": tf.cast(example["label"], tf.int32)}
        if ids:
            row["id"] = example["tfds_id"]
        if words is None:
            return {"image": decoding.centre(seen, feature, example["image"]), **row}
        # A word and an index make a seed: what stateless_fold_in would give, without its cost for every example.
        seeds = [tf.stack([words[i], index]) for i in range(1, 6)]
        if amounts.crop:
            image = decoding.decode_distorted_crop(feature, example["image"], amounts.crop, seeds[0])
        else:
            image = decoding.decode_centre(feature, example["image"], 1.0)
        image = decoding.resize(seen, image)
        image = augment.affine(image, seeds[1], shift=amounts.shift, rotation=amounts.rotation, zoom=amounts.zoom)
        image = decoding.to_uint8(image)
        image = augment.random_flip(image, seeds[2]) if amounts.flip else image
        if amounts.policy:
            image = autoaugment.apply(
                image, seeds[3], amounts.policy, layers=amounts.layers, magnitude=amounts.magnitude
            )
        if amounts.erasing:
            image = operations.random_erasing(image, seeds[4], probability=amounts.erasing)
        return {"image": image, **row}

    return prepare


def _to_numpy(ds, batch_size):
    options = tf.data.Options()
    options.deterministic = True
    # Its model of an endless pipeline grows with every epoch: after 500 steps an optimisation of it takes a minute of
    # CPU, for which the end of the program waits. Maps run on all cores without it.
    options.autotune.enabled = False
    return ds.batch(batch_size, drop_remainder=True).prefetch(2).with_options(options).as_numpy_iterator()
