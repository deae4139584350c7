"""Which parts of a recipe pay where images are few? One change at a time, on 10,000 images of Fashion-MNIST.

    python experiments/fashion_mnist/prepare.py    # where there is no internet
    basisnet train --config=configs/fashion_mnist.py:model=static,width=2 --config.train_split='train[:10000]' \
      --config.num_epochs=40 --config.eval_every_epochs=40 --config.batch_size=128 --workdir=runs/teacher
    basisnet sweep --sweep=experiments/recipe/fashion_mnist.py --workdir=runs/recipe

Thirty epochs, static networks and BasisNet with eight bases of width 0.5. Each run changes one thing of the config with
its augmentation, shift and flip. The teacher is a static network of four times the width, trained on the same images;
what it says of the plain images is stored (`distillation.cache`).
"""

CONFIG = "configs/fashion_mnist.py"
COMMON = {
    "config.train_split": "train[:10000]",
    "config.num_epochs": 30.0,
    "config.eval_every_epochs": 30.0,
    "config.batch_size": 128,
}
SEEDS = 3
OF_BOTH = {
    "augmentation alone": {},
    "no augmentation": {"config.augment.shift": 0.0, "config.augment.flip": False},
    "label smoothing, 0.1": {"config.label_smoothing": 0.1},
    "averaged weights, 0.998": {"config.ema_decay": 0.998},
    "no weight decay": {"config.optimizer.weight_decay": 0.0},
    "distillation": {
        "config.distillation.teacher": "runs/teacher",
        "config.distillation.cache": "runs/taught",
        "config.distillation.weight": 0.5,
    },
}
OF_BASISNET = {
    "basis model dropout, 1/16": {"config.coefficients.dropout": 0.0625},
    "preview loss, weight 0.25": {"config.preview_loss_weight": 0.25},
    "constant coefficients": {"config.coefficients.temperature": 1e6},
}


def sweep():
    for seed in range(SEEDS):
        for model, parts in (("basisnet", {**OF_BOTH, **OF_BASISNET}), ("static", OF_BOTH)):
            for part in parts.values():
                yield {"model": model, **part, "seed": seed}
