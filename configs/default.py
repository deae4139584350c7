"""Every field of a run, with its default. Other configs state only what differs.

A config is a Python file with `get_config(arg="")`; the argument is what follows the colon in
`--config=configs/digits.py:bases=4,width=0.5`. Any field can be set with `--config.field=value`. `ranges.py` has the
range of every field.

`batch_size` counts the images of all devices together:

    one machine, several GPUs   the same command; it uses all of them
    a TPU pod slice             the same command on every host, such as by gcloud compute tpus tpu-vm ssh --worker=all
    SLURM                       sbatch --nodes=N experiments/slurm/train.sbatch --config=FILE --workdir=DIR
    anything else               on each process --coordinator=HOST:PORT --processes=N --process=I, I from 0 to N - 1

All processes must see the same workdir and data_dir, on NFS, Lustre or a mounted bucket. `basisnet plan --config=FILE
--topology=v5e:16x16` computes, without a TPU, the memory and the shortest time of a step on one.
"""

import ml_collections


def get_config(arg=""):
    parse_arg(arg)
    config = ml_collections.ConfigDict()
    config.seed = 0  # of the initial weights, the order of the data, its augmentation and dropout

    # Data: "digits", any TFDS image classification set, or "folder:/path" with a folder of images for every class.
    # Splits in TFDS's syntax; nothing is ever tuned on test.
    config.dataset = "digits"
    config.bad_images = "stop"  # at a file that cannot be read or decoded; or "skip" it and print its name
    config.data_dir = ""  # "": where TFDS keeps its data sets
    config.train_split = "train"
    config.validation_split = "validation"
    config.test_split = "test"
    config.train_eval_split = ""  # evaluated as well, without augmentation, under "train": train_split or a part
    config.num_classes = 10  # 0: as many as the data set has
    config.channels = 3
    # Pixels, of the specialist's input. Another size (by --config.image_size, a sweep or `create_model(...,
    # image_size=...)`) also changes preview.image_size, in proportion, unless that is given too. In a config file
    # `default.resize(config, 96)` does the same.
    config.image_size = 224
    config.mean = (0.485, 0.456, 0.406)  # per channel, of images in 0..1; one number is for all
    config.stddev = (0.229, 0.224, 0.225)
    config.shuffle_buffer_size = 10_000  # examples
    config.augment = ml_collections.ConfigDict()
    config.augment.shift = 0.0  # largest, as a fraction of the side
    config.augment.rotation = 0.0  # largest, degrees
    config.augment.zoom = 0.0  # largest, as a fraction
    config.augment.flip = False  # left to right, half of the images
    config.augment.crop = 0.0  # random crops of at least this share of the area; 0: the centre of the whole image
    config.augment.policy = ""  # "imagenet" or "cifar10" (AutoAugment), or "randaugment"
    config.augment.layers = 2  # of RandAugment
    config.augment.magnitude = 10.0  # of RandAugment; its paper has 0 to 10
    config.augment.erasing = 0.0  # probability of random erasing
    config.augment.mixup = 0.0  # alpha
    config.augment.cutmix = 0.0  # alpha; if mixup is above 0 too, each batch uses one of the two
    config.resize = "bilinear"  # or "bicubic"; both antialiased
    config.eval_crop = 1.0  # side of the central square that is evaluated, as a share of the shorter side

    # Model: "basisnet"; "static", only `network`; or "routed" (CondConv, dynamic convolution), a `network` whose own
    # layers mix its bases, without a preview. A field of a network that is None keeps the paper's value. Your own
    # network is named PACKAGE.MODULE:FACTORY. Its section then has only the fields that you give, and the factory gets
    # all of them (docs/guides/your_network.md).
    config.model = "basisnet"
    config.dtype = "float32"  # of the computation, or "bfloat16"; params and statistics are float32
    config.network = network("mobilenet_v3_large")
    config.preview = network("mobilenet_v3_small")
    config.preview.image_size = 160  # at most image_size: more pixels would only be interpolated
    config.basis = ml_collections.ConfigDict()
    config.basis.num_bases = 16
    # The layers that get bases: this regular expression matches their whole path (`basisnet madds` lists the paths).
    # In your own network this default means every convolution or, without any, every layer with a kernel.
    config.basis.layers = r"stages/.*/(expand|depthwise|project)/conv|last/conv|head(/conv)?"
    # The initial kernels of the bases: "copies" of one draw, each plus noise (`init_noise`), so that BasisNet starts as
    # the static network of its seed; or "independent" draws.
    config.basis.init = "copies"
    # How to convolve with one kernel per example, for each kind of layer: a path of basisnet_jax/ops/conv.py. "": the
    # best for the shape and the device; `basisnet madds` and `plan` print it.
    config.basis.paths = ml_collections.ConfigDict({"pointwise": "", "depthwise": "", "general": ""})
    config.coefficients = ml_collections.ConfigDict()
    config.coefficients.activation = "softmax"  # or "sigmoid"
    config.coefficients.temperature = 1.0
    config.coefficients.shared = False  # one vector for all layers
    # Each layer mixes only so many bases, those with the largest coefficients, renormalised; 0: all. With 1 and softmax
    # the one coefficient is always 1, so the coefficient head gets no gradient.
    config.coefficients.top_k = 0
    # Training only. The temperature falls linearly from `initial_temperature`, in `annealing_epochs`; 0: constant.
    config.coefficients.initial_temperature = 30.0
    config.coefficients.annealing_epochs = 0.0
    # Basis model dropout: the probability that a basis is shut down. The paper has it. It is off here because no
    # experiment gained accuracy from it (experiments/causes).
    config.coefficients.dropout = 0.0
    config.coefficients.dropout_per = "example"  # or "batch": the images that share one draw
    # Of the model "routed": the units that compute coefficients from their own input, for all basis layers in them.
    # Again a whole path: of blocks (CondConv) or of single layers (dynamic convolution).
    config.routing = ml_collections.ConfigDict()
    config.routing.units = r"stages/\d+/\d+"
    config.routing.hidden = 0.0  # features of the hidden layer, as a share of the input's; 0: there is none

    # Initial weights: the workdir of a trained or imported run whose network has the same layers. A layer with bases
    # starts with copies of that network's kernel, each plus noise whose mean over the bases is zero. A classifier of
    # another shape is initialized anew.
    config.init_from = ""
    config.preview_init_from = ""  # the same for the preview, from a run of a static network
    config.init_noise = 0.1  # standard deviation of the noise, as a share of the kernel's

    # Distillation: the loss of a head is (1 - weight) * CE(labels) + weight * temperature^2 * CE(teacher).
    config.distillation = ml_collections.ConfigDict()
    config.distillation.teacher = ""  # the workdir of a run, trained or imported; "": no distillation
    config.distillation.weight = 0.5
    config.distillation.temperature = 1.0  # divides the logits of both, student and teacher
    config.distillation.heads = "both"  # or "final" or "preview"
    # A folder that keeps the teacher's predictions on the images of train_split, without augmentation. They are
    # computed once; other runs may read them. "": the teacher runs in every step, on the student's augmented images.
    config.distillation.cache = ""

    # Training. Lengths in epochs may be fractions.
    config.num_epochs = 350.0
    config.batch_size = 4096  # of all devices together, as is eval_batch_size
    config.eval_batch_size = 4096
    config.preview_loss_weight = 1.0  # lambda in CE(final) + lambda * CE(preview)
    config.balance_loss_weight = 0.0  # of a loss against uneven use of bases: Shazeer et al. 2017, arXiv 1701.06538
    config.label_smoothing = 0.1
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "rmsprop"  # or "adamw"
    config.optimizer.learning_rate = 0.256  # the peak; it is not scaled with the batch size
    config.optimizer.schedule = "cosine"  # or "exponential"
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.decay_rate = 0.97  # exponential: the factor ...
    config.optimizer.decay_epochs = 2.4  # ... applied after each such number of epochs
    config.optimizer.weight_decay = 1e-5  # on kernels only; for rmsprop as an L2 gradient, for adamw decoupled
    config.optimizer.clip_norm = 1.0  # norm of each stage's gradient (without match_static: of the whole); 0: none
    config.optimizer.momentum = 0.9  # rmsprop's momentum, adamw's b1
    config.optimizer.second_moment_decay = 0.9  # rmsprop's decay, adamw's b2
    config.optimizer.epsilon = 1e-3
    # The specialist learns as the static network would: the gradient of each basis is multiplied by the number of
    # bases, and specialist and preview are clipped separately. basisnet_jax/training/optimizer.py says why.
    config.optimizer.match_static = True
    # The coefficient head's learning rate: learning_rate times this, divided by the number of the head's input
    # features; for rmsprop also times 1 - momentum. 0: learning_rate itself.
    config.optimizer.coefficient_rate = 8.0
    config.ema_decay = 0.9999  # of params and batch statistics, warmed up as min(decay, (1 + t) / (10 + t))

    # Devices and memory.
    config.fsdp = 1  # devices that share one copy of params, averages and moments; 0: all devices
    # The dtype in which devices sum gradients where layers compute in bfloat16. bfloat16 sends about half the bytes
    # (imagenet_basisnet_mv3: 99 instead of 195 MB a step) and rounds each partial sum.
    config.reduce_dtype = "float32"
    # Batch statistics are of the whole batch of all devices, so a run's result does not depend on their number.
    # n > 1: of each of n equal parts of the batch, as on n devices that do not communicate.
    config.batch_norm_groups = 1
    config.accumulate = 1  # passes per batch; only the activations of one pass are in memory
    # Whether the backward pass mixes all kernels of the batch again instead of keeping them. None: only on TPU.
    config.remat_kernels = ml_collections.config_dict.placeholder(bool)

    # Early termination: the threshold is chosen on the validation split.
    config.max_drop = 0.003  # the largest drop of top-1, as a fraction, that the threshold may cause

    # Logging and checkpoints.
    config.log_every_steps = 100
    config.eval_every_epochs = 1.0  # metrics on the validation split, and a checkpoint that may become the best
    config.checkpoint_every_steps = 1000
    config.keep_checkpoints = 3  # the newest; the best on the validation split is kept too
    return config


def network(name):
    """The fields of a network: see its class in basisnet_jax/networks."""
    config = ml_collections.ConfigDict()
    config.name = name
    config.width = 1.0  # multiplies all channels except the head's
    config.head_features = ml_collections.config_dict.placeholder(int)
    config.drop_connect = ml_collections.config_dict.placeholder(float)  # EfficientNet's stochastic depth
    config.stem_stride = 2
    config.num_stages = ml_collections.config_dict.placeholder(int)  # only the first `num_stages` stages of the table
    # The stride of each stage's first block. None: those of the table, which with the stem reduce the image 32 times.
    config.stage_strides = ml_collections.config_dict.placeholder(tuple)
    config.dropout = 0.2
    config.padding = "same"  # as TensorFlow; "symmetric": as PyTorch
    config.epsilon = 1e-3  # of batch norm
    config.momentum = 0.99  # the share of the old batch statistics that a step keeps
    return config


def resize(config, image_size):
    """Images of another size, and the preview's in proportion."""
    config.preview.image_size = max(1, round(config.preview.image_size * image_size / config.image_size))
    config.image_size = image_size


def parse_arg(arg, **defaults):
    """`"bases=4,width=0.5"` over `defaults` (bases=16, width=1.0), each value of its default's type."""
    values = dict(defaults)
    for item in filter(None, arg.split(",")):
        name, _, value = item.partition("=")
        if name not in defaults:
            raise ValueError(f"config argument {name!r} is unknown, expected {', '.join(defaults) or 'none'}")
        try:
            values[name] = type(defaults[name])(value)
        except ValueError:
            kind = type(defaults[name]).__name__
            raise ValueError(f"config argument {item!r}, expected {name}=<{kind}>") from None
    return values
