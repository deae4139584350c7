"""Every field of a run, with its default. Other configs state only what differs.

A config is a Python file with `get_config(arg="")`; the argument is what follows the colon in
`--config=configs/digits.py:bases=4,width=0.5`, and any field can be set with `--config.field=value`. `ranges.py` says
what each field may be, and has a line for every one of them.

On more than one device `batch_size` stays that of all of them together:

    one machine, several GPUs   the same command; it uses all of them
    a TPU pod slice             the same command on every host, such as by gcloud compute tpus tpu-vm ssh --worker=all
    SLURM                       sbatch --nodes=N experiments/slurm/train.sbatch --config=FILE --workdir=DIR
    anything else               on each process --coordinator=HOST:PORT --processes=N --process=I, I from 0 to N - 1

All processes must see the same workdir and data_dir, on NFS, Lustre or a mounted bucket. What a batch needs on a TPU,
and how long a step takes at least, is told without having one: `basisnet plan --config=FILE --topology=v5e:16x16`.
"""

import ml_collections


def get_config(arg=""):
    parse_arg(arg)
    config = ml_collections.ConfigDict()
    config.seed = 0  # of the initial weights, the order of the data, its augmentation and dropout

    # Data: "digits", any TFDS image classification set, or "folder:/path" with a folder of images for every class.
    # Splits in TFDS's syntax; nothing is ever tuned on test.
    config.dataset = "digits"
    config.bad_images = "stop"  # at a file of a folder that cannot be read or decoded; or "skip" it and name it
    config.data_dir = ""  # "": where TFDS keeps its data sets
    config.train_split = "train"
    config.validation_split = "validation"
    config.test_split = "test"
    config.train_eval_split = ""  # what is evaluated besides, plainly, as "train": train_split or a part of it
    config.num_classes = 10  # 0: as many as the data set has
    config.channels = 3
    # Pixels, of the specialist's input. Whoever gives another size than a config has (--config.image_size, a sweep,
    # `create_model(..., image_size=...)`) changes preview.image_size in proportion, unless that is given too. A config
    # file that changes the size of the one it starts from does the same by `default.resize(config, 96)`.
    config.image_size = 224
    config.mean = (0.485, 0.456, 0.406)  # per channel, of images in 0..1; one number stands for all channels
    config.stddev = (0.229, 0.224, 0.225)
    config.shuffle_buffer_size = 10_000  # examples
    config.augment = ml_collections.ConfigDict()
    config.augment.shift = 0.0  # largest, as a fraction of the side
    config.augment.rotation = 0.0  # largest, degrees
    config.augment.zoom = 0.0  # largest, as a fraction
    config.augment.flip = False  # left to right, half of the images
    config.augment.crop = 0.0  # distorted crops of at least this share of the area; 0: the whole image's centre
    config.augment.policy = ""  # "imagenet" or "cifar10" (AutoAugment), or "randaugment"
    config.augment.layers = 2  # of RandAugment
    config.augment.magnitude = 10.0  # of RandAugment, 0..10
    config.augment.erasing = 0.0  # probability of random erasing
    config.augment.mixup = 0.0  # alpha
    config.augment.cutmix = 0.0  # alpha; where mixup's is above 0 too, each batch takes one of them
    config.resize = "bilinear"  # or "bicubic"; both antialiased
    config.eval_crop = 1.0  # side of the central square that is evaluated, as a share of the shorter side

    # Model: "basisnet"; "static", `network` alone; or "routed" (CondConv, dynamic convolution), `network` with bases
    # that its own layers mix, without a preview. A field of a network that is None keeps the paper's value. A network
    # of one's own is named PACKAGE.MODULE:FACTORY; its section then has only the fields that are given with it, and the
    # factory takes all of them (docs/guides/your_network.md).
    config.model = "basisnet"
    config.dtype = "float32"  # of the computation, or "bfloat16"; params and statistics are float32
    config.network = network("mobilenet_v3_large")
    config.preview = network("mobilenet_v3_small")
    config.preview.image_size = 160  # at most image_size: a preview of more pixels would see them interpolated
    config.basis = ml_collections.ConfigDict()
    config.basis.num_bases = 16
    # Which layers get bases: those whose whole path this regular expression matches (`basisnet madds` lists the paths).
    # In a network of one's own this default stands for every convolution or, without any, every layer with a kernel.
    config.basis.layers = r"stages/.*/(expand|depthwise|project)/conv|last/conv|head(/conv)?"
    # The bases' first kernels: "copies" of one draw, each plus noise as `init_noise` says, so that BasisNet starts as
    # the static network of its seed; or "independent" draws.
    config.basis.init = "copies"
    # How one kernel per example is convolved, for each kind of layer: a path of basisnet_jax/ops/conv.py. "": the best
    # for the shape and the device; `basisnet madds` and `plan` say which.
    config.basis.paths = ml_collections.ConfigDict({"pointwise": "", "depthwise": "", "general": ""})
    config.coefficients = ml_collections.ConfigDict()
    config.coefficients.activation = "softmax"  # or "sigmoid"
    config.coefficients.temperature = 1.0
    config.coefficients.shared = False  # one vector for all layers
    # Training only. The temperature falls linearly from `initial_temperature` within so many epochs; 0: it is constant.
    config.coefficients.initial_temperature = 30.0
    config.coefficients.annealing_epochs = 0.0
    # Basis model dropout: the probability that a basis is shut down. The paper has it. It is off here because no
    # experiment gained accuracy from it (experiments/causes).
    config.coefficients.dropout = 0.0
    config.coefficients.dropout_per = "example"  # or "batch": what shares one draw
    # Of the model "routed": what computes coefficients from its own input, for all basis layers in it. Whole paths
    # again, of blocks (CondConv) or of single layers (dynamic convolution).
    config.routing = ml_collections.ConfigDict()
    config.routing.units = r"stages/\d+/\d+"
    config.routing.hidden = 0.0  # features of the hidden layer, as a share of the input's; 0: there is none

    # Initial weights: the workdir of a run, trained or imported, whose network has the same layers. A layer with bases
    # starts with copies of that network's kernel, each plus noise whose mean over the bases is zero; layers of another
    # shape (the classifier) start anew.
    config.init_from = ""
    config.preview_init_from = ""  # the same for the preview, from a run of a static network
    config.init_noise = 0.1  # standard deviation of the noise, as a share of the kernel's

    # Distillation: the loss of a head is (1 - weight) * CE(labels) + weight * temperature^2 * CE(teacher).
    config.distillation = ml_collections.ConfigDict()
    config.distillation.teacher = ""  # the workdir of a run, trained or imported; "": no distillation
    config.distillation.weight = 0.5
    config.distillation.temperature = 1.0  # divides the logits of both, student and teacher
    config.distillation.heads = "both"  # or "final" or "preview"
    # A folder where the teacher's predictions on the plain images of train_split are kept: computed once, then read by
    # this run and all others. "": the teacher runs in every step and sees what the student sees, augmentation included.
    config.distillation.cache = ""

    # Training. Lengths in epochs may be fractions.
    config.num_epochs = 350.0
    config.batch_size = 4096  # of all devices together, as is eval_batch_size
    config.eval_batch_size = 4096
    config.preview_loss_weight = 1.0  # lambda in CE(final) + lambda * CE(preview)
    config.label_smoothing = 0.1
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "rmsprop"  # or "adamw"
    config.optimizer.learning_rate = 0.256  # the peak, for this batch size; nothing rescales it
    config.optimizer.schedule = "cosine"  # or "exponential"
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.decay_rate = 0.97  # exponential: the factor ...
    config.optimizer.decay_epochs = 2.4  # ... applied every so many epochs, in steps
    config.optimizer.weight_decay = 1e-5  # on kernels only; for rmsprop as an L2 gradient, for adamw decoupled
    config.optimizer.clip_norm = 1.0  # of each stage's gradient (of the whole one without match_static); 0: none
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
    config.fsdp = 1  # devices over which params, averages and moments are split; the others hold copies. 0: all devices
    # Batch statistics are of the global batch, on however many devices, so that a run's result does not depend on
    # their number. n > 1: of each of n equal parts of the batch, as on n devices that do not talk to each other.
    config.batch_norm_groups = 1
    config.accumulate = 1  # passes that share a batch; only one share's activations are in memory at a time
    # Whether the backward pass mixes all kernels of the batch again instead of keeping them. None: on TPU.
    config.remat_kernels = ml_collections.config_dict.placeholder(bool)

    # Early termination: the threshold is chosen on the validation split.
    config.max_drop = 0.003  # the top-1, as a fraction, that the chosen threshold may cost

    # Logging and checkpoints.
    config.log_every_steps = 100
    config.eval_every_epochs = 1.0  # metrics on the validation split, and a checkpoint that can be the best
    config.checkpoint_every_steps = 1000
    config.keep_checkpoints = 3  # the newest; the best on the validation split is kept besides
    return config


def network(name):
    """The fields of a network: see its class in basisnet_jax/networks."""
    config = ml_collections.ConfigDict()
    config.name = name
    config.width = 1.0  # multiplies all channels but the head's
    config.head_features = ml_collections.config_dict.placeholder(int)
    config.drop_connect = ml_collections.config_dict.placeholder(float)  # EfficientNet's stochastic depth
    config.stem_stride = 2
    config.num_stages = ml_collections.config_dict.placeholder(int)  # only the table's first so many stages
    # The stride of each stage's first block. None keeps the table's, which with the stem reduce the image 32 times.
    config.stage_strides = ml_collections.config_dict.placeholder(tuple)
    config.dropout = 0.2
    config.padding = "same"  # as TensorFlow; "symmetric": as PyTorch
    config.epsilon = 1e-3  # of batch norm
    config.momentum = 0.99  # what batch statistics keep per step
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
