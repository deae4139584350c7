"""Schedules, optimizers and averages against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from basisnet_jax.configs import default
from orbax.checkpoint import tree as trees

from basisnet_jax import models
from basisnet_jax.basisnet import Outputs
from basisnet_jax.ops import platforms
from basisnet_jax.training import losses, optimizer
from basisnet_jax.training.step import create_state, make_train_step

PLAIN = models.Functional({}, {}, None, None, {}, {})  # of a network without bases


def config(**changes):
    config = default.get_config().optimizer
    config.update(changes)
    return config


def test_warm_up_then_cosine():
    rate = optimizer.schedule(config(learning_rate=0.4, warmup_epochs=2.0), steps_per_epoch=10, total_steps=120)
    steps = np.array([0, 5, 20, 45, 70, 120])
    cosine = 0.2 * (1 + np.cos(np.pi * (steps - 20) / 100))
    np.testing.assert_allclose([rate(step) for step in steps], np.where(steps < 20, 0.02 * steps, cosine), atol=1e-6)


def test_warm_up_then_exponential_decay_in_steps():
    changes = dict(learning_rate=1.0, schedule="exponential", warmup_epochs=1.0, decay_epochs=2.0, decay_rate=0.5)
    rate = optimizer.schedule(config(**changes), steps_per_epoch=10, total_steps=100)
    np.testing.assert_allclose([rate(5), rate(10), rate(29), rate(30), rate(50)], [0.5, 1.0, 1.0, 0.5, 0.25])


def run(changes, grads, params):
    tx = optimizer.create(config(**changes), lambda step: 0.1, PLAIN)
    state = tx.init(params)
    for grad in grads:
        updates, state = tx.update(grad, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


def test_rmsprop_is_tensorflows():
    params = {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}
    grads = [{"kernel": jnp.array([g]), "bias": jnp.array([g])} for g in (0.3, -0.1)]
    ours = run(dict(weight_decay=0.5, momentum=0.9, second_moment_decay=0.8, epsilon=1e-3), grads, params)
    for name, decay in (("kernel", 0.5), ("bias", 0.0)):
        weight, mean_square, momentum = 2.0, 1.0, 0.0
        for grad in (0.3, -0.1):
            grad += decay * weight  # an L2 term of the gradient
            mean_square = 0.8 * mean_square + 0.2 * grad**2
            momentum = 0.9 * momentum + 0.1 * grad / np.sqrt(mean_square + 1e-3)
            weight -= momentum
        np.testing.assert_allclose(ours[name], weight, rtol=1e-5)


def test_adamw_decay_is_decoupled():
    params = {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}
    zero = jax.tree.map(jnp.zeros_like, params)
    ours = run(dict(name="adamw", weight_decay=0.5), [zero], params)
    np.testing.assert_allclose([ours["kernel"][0], ours["bias"][0]], [2.0 - 0.1 * 0.5 * 2.0, 2.0], rtol=1e-6)


def test_clipping_bounds_the_whole_gradient():
    params = {"kernel": jnp.zeros(2)}
    changes = dict(
        name="adamw", weight_decay=0.0, epsilon=1e3, clip_norm=0.0
    )  # so large an epsilon makes Adam proportional
    small, large = ({"kernel": jnp.array([3.0, 4.0]) * scale} for scale in (0.2, 2000.0))
    clipped = run(dict(changes, clip_norm=1.0), [large], params)
    np.testing.assert_allclose(clipped["kernel"], run(changes, [small], params)["kernel"], rtol=1e-3)
    assert not np.allclose(run(changes, [large], params)["kernel"], clipped["kernel"], rtol=0.5)


def test_moving_average_warms_up():
    average = jnp.array(0.0)
    for step in range(3):
        average = optimizer.moving_average(average, jnp.array(1.0), jnp.array(step), 0.5)
    expected = 0.0
    for decay in (1 / 10, 2 / 11, 3 / 12):
        expected = decay * expected + (1 - decay)
    np.testing.assert_allclose(average, expected, rtol=1e-6)
    late = optimizer.moving_average(jnp.array(0.0), jnp.array(1.0), jnp.array(10_000), 0.5)
    np.testing.assert_allclose(late, 0.5)


def test_joint_loss_is_the_weighted_sum():
    logits = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    labels = np.array([1, 3, 0])

    def cross_entropy(logits, smoothing):
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        target = np.full(logits.shape, smoothing / 4) + (1 - smoothing) * np.eye(4)[labels]
        return -(target * log_p).sum(-1).mean()

    outputs = Outputs(jnp.asarray(logits[0]), jnp.asarray(logits[1]))
    loss, parts = losses.joint(outputs, losses.targets(labels, 4, 0.1), None, 0.3, None)
    final, preview = cross_entropy(logits[0], 0.1), cross_entropy(logits[1], 0.1)
    np.testing.assert_allclose([loss, *parts.values()], [final + 0.3 * preview, final, preview], rtol=1e-5)
    alone, parts = losses.joint(Outputs(outputs.logits), losses.targets(labels, 4, 0.1), None, 1.0, None)
    np.testing.assert_allclose(alone, final, rtol=1e-5)
    assert set(parts) == {"final_loss"}
    uneven = outputs._replace(coefficients=jnp.array([[[1.0, 0.0]], [[0.5, 0.5]]]))  # usage of 1.5 and 0.5
    balanced, parts = losses.joint(uneven, losses.targets(labels, 4, 0.1), None, 0.3, None, 0.2)
    np.testing.assert_allclose(balanced, loss + 0.2 * 0.25, rtol=1e-5)
    np.testing.assert_allclose(parts["balance_loss"], 0.25, rtol=1e-5)
    smoothed = losses.loss(uneven, labels, preview_weight=0.3, balance_weight=0.2, label_smoothing=0.1)
    np.testing.assert_allclose(smoothed, balanced, rtol=1e-5)
    without, parts = losses.joint(uneven, losses.targets(labels, 4, 0.1), None, 0.3, None)
    assert without == loss and "balance_loss" not in parts


def test_a_step_with_top_k_balances_the_bases(tiny):
    config = tiny(balance_loss_weight=1.5, **{"coefficients.top_k": 2})
    functions = models.functional(models.create(config))
    tx = optax.sgd(0.03)
    step = jax.jit(make_train_step(config, functions, tx))
    images = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 1), np.uint8)
    batch = {"image": images, "label": np.arange(32) % 10}
    state, logged = create_state(functions.params, functions.batch_stats, tx), []
    for _ in range(10):
        state, metrics = step(state, batch, jax.random.key(0))
        parts = metrics["final_loss"] + metrics["preview_loss"] + 1.5 * metrics["balance_loss"]
        np.testing.assert_allclose(metrics["loss"], parts, rtol=1e-5)
        logged.append(float(metrics["balance_loss"]))
    assert logged[-1] < 0.5 * logged[0], logged


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_even_copies_train_as_the_static_network(tiny, name):
    """Step by step, whatever the number of bases: a learning rate that suits one suits the other."""
    batch = {"image": np.random.default_rng(0).integers(0, 256, (8, 16, 16, 1), np.uint8), "label": np.arange(8)}

    def trained(**changes):
        config = tiny(**{"network.dropout": 0.0, "optimizer.clip_norm": 0.1, **changes})
        config.optimizer.update(name=name, epsilon=1e-3, weight_decay=1e-3)
        functions = models.functional(models.create(config))
        tx = optimizer.create(config.optimizer, lambda step: 0.3, functions)
        state = create_state(functions.params, functions.batch_stats, tx)
        step = jax.jit(make_train_step(config, functions, tx))
        for _ in range(4):
            state, _ = step(state, batch, jax.random.key(0))
        return functions.params, state.params

    copies = {"basis.init": "copies", "init_noise": 0.0, "coefficients.temperature": 1e9}
    first, static = map(trees.to_flat_dict, trained(model="static"))
    params = trees.to_flat_dict(trained(**copies)[1]["specialist"])

    def bases_of(path):
        return params.get((*path[:-1], "layer", path[-1]), params.get(path))

    for path, expected in static.items():
        # Adam divides small gradients by their size, and so magnifies how they are rounded.
        expected = np.broadcast_to(expected, bases_of(path).shape)
        np.testing.assert_allclose(bases_of(path), expected, rtol=2e-3, atol=2e-4, err_msg=str(path))
    assert np.mean([not np.allclose(static[path], first[path], rtol=0.01) for path in static]) > 0.4
    if name == "rmsprop":  # otherwise three bases learn three times more slowly
        slow = trees.to_flat_dict(trained(**copies, **{"optimizer.match_static": False})[1]["specialist"])
        kernels = [path for path in slow if path[-2:] == ("layer", "kernel")]
        assert kernels and not all(np.allclose(slow[path], params[path], rtol=2e-3, atol=2e-4) for path in kernels)


@pytest.mark.slow
def test_the_heads_logits_move_at_one_speed_whatever_its_width(tiny):
    """By about rate x coefficient_rate x mean |feature| a step of Adam; not, as without it, by rate x their sum."""

    def moved(features, coefficient_rate):
        config = tiny(**{"preview.head_features": features, "optimizer.coefficient_rate": coefficient_rate})
        functions = models.abstract(models.create_abstract(config))
        tx = optimizer.create(config.optimizer, lambda step: 0.01, functions)

        @jax.jit
        def updates():
            params, gradient = (jax.tree.map(like, functions.params) for like in (jnp.zeros_like, jnp.ones_like))
            return tx.update(gradient, tx.init(params), params)[0]

        head = updates()["coefficient_head"]
        return -float(head["kernel"].sum(axis=0)[0] + head["bias"][0])  # of a logit, where all features are 1

    narrow, wide = moved(8, 4.0), moved(64, 4.0)
    np.testing.assert_allclose([narrow, wide], 0.01 * 4.0 * np.array([9 / 8, 65 / 64]), rtol=0.02)
    assert moved(64, 0.0) == pytest.approx(0.01 * 65, rel=0.02)
    assert moved(64, 8.0) == pytest.approx(2 * wide, rel=1e-5)


def test_the_heads_logits_move_at_one_speed_with_either_optimizer(tiny):
    """A gradient that stays moves them by as much a step, although RMSProp's momentum sums what Adam's averages."""

    def moved(name):
        config = tiny(**{"optimizer.coefficient_rate": 4.0})
        config.optimizer.update(name=name, momentum=0.9, second_moment_decay=0.9, epsilon=1e-8, weight_decay=0.0)
        functions = models.functional(models.create(config))
        tx = optimizer.create(config.optimizer, lambda step: 0.01, functions)
        gradient = jax.tree.map(jnp.ones_like, functions.params)

        def step(state, _):
            updates, state = tx.update(gradient, state, functions.params)
            return state, updates["coefficient_head"]["kernel"][0, 0]

        return float(jax.lax.scan(step, tx.init(functions.params), length=400)[1][-1])

    assert moved("rmsprop") == pytest.approx(moved("adamw"), rel=0.01)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_clipping_is_optax_s(backend):
    """On GPU the small arrays are summed as one."""
    random = np.random.default_rng(0)
    shapes = {"a": (3,), "b": (2, 5), "c": (130, 127), "d": ()}
    grads = {name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    with platforms.paths_for(backend):
        np.testing.assert_allclose(optimizer.norm(grads), optax.tree.norm(grads), rtol=1e-6)
        for largest in (1.0, 1e6):
            found, _ = optimizer.clipped(largest).update(grads, optax.EmptyState())
            expected, _ = optax.clip_by_global_norm(largest).update(grads, optax.EmptyState())
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
