"""Why BasisNet trained below its static network: one thing changed at a time.

    basisnet sweep --sweep=experiments/causes/sweep.py --workdir=runs/causes

One epoch of `glyphs` (basisnet_jax/data/glyphs.py names its fonts), width 0.5, 4 bases, three seeds. `old` puts back
all defaults until 2681f21. What is changed for the static network as well is compared with that. `match_static`
switches two things off, clipping by stage and the factor N of the bases' gradient; Adam divides the second out.
"""

CONFIG = "configs/glyphs.py:bases=4"
COMMON = {"config.num_epochs": 1.0, "config.eval_every_epochs": 1.0}
STATIC = {"config.model": "static"}
RMSPROP = {
    "config.optimizer.name": "rmsprop",
    "config.optimizer.second_moment_decay": 0.9,
    "config.optimizer.epsilon": 1e-3,
    "config.optimizer.weight_decay": 1e-5,
    "config.optimizer.clip_norm": 0.0,
    "config.optimizer.coefficient_rate": 80.0,  # times 1 - momentum, 8: what all had before 06df079
    "config.optimizer.learning_rate": 0.016,
}
INDEPENDENT = {"config.basis.init": "independent"}
FAST_HEAD = {"config.optimizer.coefficient_rate": 0.0}
DROPOUT = {"config.coefficients.dropout": 0.0625}
CLIPPED_TOGETHER = {"config.optimizer.match_static": False}
CHANGES = {
    "static": STATIC,
    "defaults": {},
    "old": {**INDEPENDENT, **FAST_HEAD, **DROPOUT, **CLIPPED_TOGETHER},
    "independent first kernels": INDEPENDENT,
    "the head at the learning rate of the rest": FAST_HEAD,
    "basis model dropout": DROPOUT,
    "basis model dropout, one draw a batch": {**DROPOUT, "config.coefficients.dropout_per": "batch"},
    "basis model dropout, independent first kernels": {**DROPOUT, **INDEPENDENT},
    "clipped by the norm of both stages": CLIPPED_TOGETHER,
    "constant coefficients": {"config.coefficients.temperature": 1e9},
    "no clipping, static": {**STATIC, "config.optimizer.clip_norm": 0.0},
    "no clipping": {"config.optimizer.clip_norm": 0.0},
    "no weight decay, static": {**STATIC, "config.optimizer.weight_decay": 0.0},
    "no weight decay": {"config.optimizer.weight_decay": 0.0},
    "averaged weights, static": {**STATIC, "config.ema_decay": 0.99},
    "averaged weights": {"config.ema_decay": 0.99},
    "RMSProp, static": {**STATIC, **RMSPROP},
    "RMSProp, 16 bases": {"config.basis.num_bases": 16, **RMSPROP},
    "RMSProp, 16 bases, gradients not scaled": {"config.basis.num_bases": 16, **RMSPROP, **CLIPPED_TOGETHER},
}


def sweep():
    for seed in range(3):
        for changes in CHANGES.values():
            yield {**changes, "seed": seed}
