"""Does augmentation pay in ten epochs of Fashion-MNIST? Static networks of width 0.5, on the validation split.

basisnet sweep --sweep=experiments/front/augmentation.py --workdir=runs/front/augmentation
"""

CONFIG = "configs/fashion_mnist.py:model=static"
COMMON = {"config.num_epochs": 10.0, "config.eval_every_epochs": 10.0, "config.ema_decay": 0.998}
NONE = {"config.augment.shift": 0.0, "config.augment.flip": False}


def sweep():
    for augmentation in (NONE, {}):
        for rate in (0.004, 0.008, 0.016, 0.032, 0.064, 0.128):
            for seed in range(3):
                run = {"width": 0.5, "config.batch_size": 128, **augmentation}
                yield {**run, "config.optimizer.learning_rate": rate, "seed": seed}
