"""Batches for training and evaluation: TFDS and tf.data in, numpy arrays of this host's share out.

The training batch of step t is a function of (config.seed, t) and of the host alone. A run that resumes at step t
therefore needs no saved position: `train_batches(first_step=t)` goes on as if nothing had happened.

Examples are shuffled undecoded, so that skipping what a resumed epoch has already seen costs next to nothing;
decoding and augmentation come after the skip. A large dataset is read anew by one pipeline an epoch; a small one is
kept in memory and fed by one pipeline for the whole run, since building a pipeline takes longer than a short epoch.

`open` reads the data fields of configs/default.py, the seed, and the two batch sizes (over all hosts), once. Images
leave as uint8 [b, image_size, image_size, channels], labels as int32 [b], where b is this host's share of the batch.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator

import jax
import ml_collections
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from clu import deterministic_data

from basisnet_jax import preprocess
from basisnet_jax.configs import ranges
from basisnet_jax.data import augment, autoaugment, decoding, imagenet, operations
from basisnet_jax.data.source import Source, keep_tensorflow_off_accelerators
from basisnet_jax.errors import UserError
from basisnet_jax.preprocess import Preprocess

Batches = Iterator[dict[str, np.ndarray]]

_IN_MEMORY_BYTES = 50e6  # A dataset no bigger than this on disk is read once and kept, still encoded.

# AutoGraph would rewrite every function that tf.data maps, and all that it calls, to let Python's `if` and `for` depend
# on tensors. Nothing here asks for that, and without it a run starts seconds earlier.
_plain = tf.autograph.experimental.do_not_convert


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set, opened: its examples and all that batches of them depend on. See `open`.

    What changes on disk afterwards, such as a file added to a folder of images, changes nothing here.
    """

    source: Source
    seen: Preprocess
    augment: ml_collections.FrozenConfigDict
    seed: int
    train_split: str
    batch_size: int  # over all hosts, as `eval_batch_size`
    eval_batch_size: int
    shuffle_buffer_size: int

    @property
    def num_classes(self) -> int:
        return len(self.source.classes)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes by label: readable ones for ImageNet's ids; numbers where there are no names."""
        return imagenet.readable(self.source.classes)

    @property
    def fingerprint(self) -> str:
        """What identifies the examples: see `Source.fingerprint`."""
        return self.source.fingerprint

    def num_examples(self, split: str, given_by: str = "") -> int:
        """Examples in a TFDS split such as 'train', 'train[:90%]' or 'train+validation', or in a share of one.

        `given_by` is the field or flag that an error is about.
        """
        info = self.source.builder.info
        try:
            return info.splits[split].num_examples
        except (ValueError, KeyError) as error:
            known = ", ".join(f"{part} ({of_part.num_examples})" for part, of_part in info.splits.items())
            name = split if isinstance(split, str) else split.split
            if given_by:
                raise UserError(f"{given_by}={name!r}, expected a split of {info.name}: {known}") from error
            raise UserError(f"{info.name} has no split {name!r}; it has {known}") from error

    def steps_per_epoch(self, process_count: int | None = None) -> int:
        """Full batches in an epoch of training; the same on all hosts, since shares are cut to equal size."""
        count = _host(0, process_count)[1]
        num_share = self.num_examples(tfds.even_splits(self.train_split, count, drop_remainder=True)[0])
        steps = num_share // self._per_host("batch_size", count)
        if not steps:
            examples = f"the {num_share * count} examples of {self.source.name} {self.train_split!r}"
            raise UserError(f"config.batch_size={self.batch_size} is more than {examples} on {count} host(s)")
        return steps

    def seen_as(self, seen: Preprocess) -> "Dataset":
        """The same examples as another model sees them, such as a teacher."""
        return dataclasses.replace(self, seen=seen)

    @_plain
    def train_batches(self, first_step: int = 0, *, ids=False, process_index=None, process_count=None) -> Batches:
        """Endless shuffled, augmented batches {'image', 'label'}, the first of them that of step `first_step`.

        With `ids` also 'id', bytes [b]: TFDS's name of each example, the same in every run and split.

        An epoch is `steps_per_epoch()` full batches, sees each example at most once, and leaves out the few that do
        not fill a batch, other ones each time. The host's index and count are JAX's unless given.
        """
        index, count = _host(process_index, process_count)
        split = tfds.even_splits(self.train_split, count, drop_remainder=True)[index]
        steps, batch_size = self.steps_per_epoch(count), self._per_host("batch_size", count)
        epoch, skip = divmod(first_step, steps)
        prepare = self._prepared(ids)

        @_plain
        def batches(ds):
            return _to_numpy(ds.map(prepare, num_parallel_calls=tf.data.AUTOTUNE), batch_size)

        if self._fits_in_memory():
            examples = _in_memory(self.source.builder.data_dir, split)

            def one_epoch(epoch):
                words = _random_words(self.seed, epoch, index)
                order = tf.random.experimental.stateless_shuffle(tf.range(len(examples["label"])), [words[0], 0])
                ds = tf.data.Dataset.from_tensor_slices(order[: steps * batch_size]).enumerate()
                return ds.map(lambda i, row: ({name: column[row] for name, column in examples.items()}, i, words))

            ds = tf.data.Dataset.range(epoch, sys.maxsize).flat_map(one_epoch)
            return batches(ds.skip(skip * batch_size))

        def streamed(epoch, skip):
            while True:
                words = _random_words(self.seed, epoch, index)
                seed = int(words[0])
                ds = _read(self.source.builder, split, seed).shuffle(self.shuffle_buffer_size, seed=seed)
                ds = ds.enumerate().skip(skip * batch_size)
                yield from batches(ds.map(_plain(lambda i, example, words=words: (example, i, words))))
                epoch, skip = epoch + 1, 0

        return streamed(epoch, skip)

    @_plain
    def eval_batches(self, split: str, *, ids=False, process_index=None, process_count=None) -> Batches:
        """Batches {'image', 'label', 'mask'} of every example once, in order, as they are; `ids` as for training.

        All hosts make the same number of full batches and together hold every example once, for any size of the split.
        `mask`, bool [b], is False at the rows of zeros that fill up the end.
        """
        index, count = _host(process_index, process_count)
        batch_size = self._per_host("eval_batch_size", count)
        shares = tfds.even_splits(split, count)  # Remainders go to the first: no host has more than host 0.
        num_own, num_first = self.num_examples(shares[index]), self.num_examples(shares[0])
        num_batches = -(-num_first // batch_size)
        # TFDS refuses to read an empty share, so a host without examples takes none of somebody else's.
        share = shares[index if num_own else 0]
        if self._fits_in_memory():
            ds = tf.data.Dataset.from_tensor_slices(_in_memory(self.source.builder.data_dir, share))
        else:
            ds = _read(self.source.builder, share)
        ds = ds.take(num_own).map(self._prepared(ids), num_parallel_calls=tf.data.AUTOTUNE)
        ds = deterministic_data.pad_dataset(
            ds, batch_dims=[batch_size], pad_up_to_batches=num_batches, cardinality=num_own
        )
        return _to_numpy(ds, batch_size)

    def _per_host(self, field: str, count: int) -> int:
        size = getattr(self, field)
        if size % count:
            raise UserError(f"config.{field} is {size}, which {count} hosts cannot share equally")
        return size // count

    def _fits_in_memory(self) -> bool:
        return self.source.builder.info.dataset_size <= _IN_MEMORY_BYTES

    def _prepared(self, ids: bool):
        """Function of an undecoded example and, for training, its index in the epoch and the epoch's random words."""
        seen, amounts = self.seen, self.augment
        feature = self.source.builder.info.features["image"]

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


def open(config: ml_collections.ConfigDict, source: Source | None = None) -> Dataset:
    """The data set of a config, prepared on disk. All that is read of the config is read here.

    Args:
      config: of a run; a `num_classes` of 0 stands for any number, which `Source.completed` fills in.
      source: what `Source.find(config)` gave, where that was asked for before; a folder is not listed again then.

    Raises:
      UserError: the name or the way of resizing is unknown; the dataset's features, number of classes (unless it is to
        be found out) or number of channels are not what the config says; or the data are not there and cannot be
        fetched.
    """
    decoding.check_resize(config.resize)
    source = source or Source.find(config)
    if config.channels not in (1, 3):
        raise UserError(
            f"config.channels is {config.channels}, but must be 1 or 3; {source.name} has {source.channels}"
        )
    if config.num_classes not in (0, len(source.classes)):
        given = f"config.num_classes is {config.num_classes}"
        raise UserError(f"{given}, but {source.name} has {len(source.classes)} classes")
    source.builder  # noqa: B018  (prepares it now)
    return Dataset(
        source=source,
        seen=preprocess.of(config),
        augment=ml_collections.FrozenConfigDict(config.augment),
        seed=config.seed,
        train_split=config.train_split,
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        shuffle_buffer_size=config.shuffle_buffer_size,
    )


def lengths(config: ml_collections.ConfigDict, data: Dataset) -> tuple[int, int]:
    """The steps of the whole training and of an epoch.

    Raises:
      UserError: a split of the config is unknown or empty, or there would be no step.
    """
    for field in ("train_split", "validation_split", "test_split", "train_eval_split"):
        if config[field] and not data.num_examples(config[field], f"config.{field}"):
            raise ranges.wrong(field, config[field], "a split with examples in it")
    steps_per_epoch = data.steps_per_epoch()
    return total_steps(config, steps_per_epoch), steps_per_epoch


def total_steps(config: ml_collections.ConfigDict, steps_per_epoch: int) -> int:
    """The steps of the whole training. Raises UserError where there would be none."""
    if steps := round(config.num_epochs * steps_per_epoch):
        return steps
    raise UserError(
        f"config.num_epochs={config.num_epochs}, expected at least one step: an epoch has {steps_per_epoch}, "
        f"of config.batch_size={config.batch_size}"
    )


def evaluation_image(seen: Preprocess, encoded: bytes) -> np.ndarray:
    """An encoded RGB or grey image, pixel for pixel as evaluation sees it: uint8 [image_size, image_size, channels]."""
    keep_tensorflow_off_accelerators()
    feature = tfds.features.Image(shape=(None, None, 3))
    return decoding.centre(seen, feature, encoded).numpy()


def _host(process_index, process_count):
    return (
        jax.process_index() if process_index is None else process_index,
        jax.process_count() if process_count is None else process_count,
    )


def _random_words(seed, epoch, process_index):
    """Six random int64: for the order of an epoch on this host, and for each of five kinds of augmentation.

    By TensorFlow and not by JAX, whose operations would queue behind the training steps on the accelerator.
    """
    key = tf.stack([tf.cast(seed, tf.int64), tf.cast(epoch, tf.int64)])
    key = tf.random.experimental.stateless_fold_in(key, tf.cast(process_index, tf.int64))
    return tf.random.stateless_uniform([6], key, minval=None, maxval=None, dtype=tf.int64)


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


def _to_numpy(ds, batch_size):
    options = tf.data.Options()
    options.deterministic = True
    # Its model of an endless pipeline grows with every epoch: after 500 steps an optimisation of it takes a minute of
    # CPU, for which the end of the program waits. Maps run on all cores without it.
    options.autotune.enabled = False
    return ds.batch(batch_size, drop_remainder=True).prefetch(2).with_options(options).as_numpy_iterator()
