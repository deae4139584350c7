"""Initial weights from another run: equal logits at zero noise, noisy copies otherwise, misfits named."""

import jax
import numpy as np
import pytest

from basisnet_jax import models, parsing
from basisnet_jax.errors import UserError
from basisnet_jax.training import initial_weights, loop
from basisnet_jax.workdir import checkpoint, runs

_rng = np.random.default_rng(0)
IMAGES = (_rng.normal(size=(4, 16, 16, 1)) + 3 * _rng.normal(size=(4, 1, 1, 1))).astype(np.float32)


def saved(config, workdir):
    """A run of this config whose weights and statistics are all random; its outputs of IMAGES."""
    functions = models.functional(models.create(config))
    rng = np.random.default_rng(1)

    def drawn(path, leaf):
        vector = np.ndim(leaf) == 1  # biases, and batch norm's
        spread = 50 if path[-2].key == "classifier" and not vector else 1
        return np.asarray(spread * leaf + vector * rng.normal(0, 0.3, leaf.shape), np.float32)

    params = jax.tree.map_with_path(drawn, functions.params)
    batch_stats = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32), functions.batch_stats)
    runs.claim(parsing.resolve(config), str(workdir))
    with checkpoint.manager(str(workdir), keep=1) as checkpoints:
        checkpoint.save(checkpoints, 0, {"ema_params": params, "ema_batch_stats": batch_stats})
    return jax.jit(functions.evaluate)(params, batch_stats, IMAGES)


def initialized(config):
    functions = initial_weights.initialized(config, models.functional(models.create(config)))
    return functions, jax.jit(functions.evaluate)(functions.params, functions.batch_stats, IMAGES)


def test_without_noise_the_logits_are_those_of_the_plain_network(tiny, tmp_path):
    expected = saved(tiny(model="static"), tmp_path / "static").logits
    assert np.std(expected, axis=0).max() > 0.05
    for shared in (False, True):
        config = tiny(init_from=str(tmp_path / "static"), init_noise=0.0, **{"coefficients.shared": shared})
        _, outputs = initialized(config)
        # The coefficients sum to one only as exactly as float32 does.
        np.testing.assert_allclose(outputs.logits, expected, rtol=2e-5, atol=2e-5)
        assert np.ptp(outputs.coefficients) > 0  # and are not all the same
        assert not np.allclose(outputs.preview_logits, expected, atol=0.01)


def test_with_noise_every_basis_is_another_copy(tiny, tmp_path):
    saved(tiny(model="static"), tmp_path / "static")
    source = runs.load(str(tmp_path / "static")).params
    functions, _ = initialized(tiny(init_from=str(tmp_path / "static"), init_noise=0.5))
    specialist = functions.params["specialist"]
    kernels, kernel = specialist["last"]["conv"]["layer"]["kernel"], source["last"]["conv"]["kernel"]
    noise = (kernels - kernel) / kernel.std()
    assert len({part.tobytes() for part in noise}) == 3
    np.testing.assert_allclose(noise.std(), 0.5, rtol=0.1)
    other = specialist["stages"][0][0]["project"]["conv"]["layer"]["kernel"]
    assert abs(np.corrcoef(noise[0].ravel()[:20], (other[0]).ravel()[:20])[0, 1]) < 0.9
    np.testing.assert_array_equal(specialist["stem"]["conv"]["kernel"], source["stem"]["conv"]["kernel"])
    np.testing.assert_array_equal(specialist["classifier"]["bias"], source["classifier"]["bias"])


def test_the_preview_from_a_run_of_its_own(tiny, tmp_path):
    config = tiny()
    own = tiny(model="static", image_size=8)
    own.network = dict(config.preview)
    del own.network.image_size
    saved(own, tmp_path / "preview")
    source = runs.load(str(tmp_path / "preview")).params
    functions, _ = initialized(tiny(preview_init_from=str(tmp_path / "preview")))
    jax.tree.map(np.testing.assert_array_equal, functions.params["preview"], source)


@pytest.mark.slow
def test_a_basisnet_starts_as_another_one(tiny, tmp_path):
    expected = saved(tiny(), tmp_path / "run")
    _, outputs = initialized(tiny(init_from=str(tmp_path / "run")))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), outputs, expected)


def test_routed_networks_start_from_the_plain_one(tiny, tmp_path):
    expected = saved(tiny(model="static"), tmp_path / "static").logits
    config = tiny(model="routed", init_from=str(tmp_path / "static"), init_noise=0.0)
    config.routing.units = r"stages/\d+/\d+|last/conv|head"
    _, outputs = initialized(config)
    np.testing.assert_allclose(outputs.logits, expected, rtol=2e-5, atol=2e-5)


def test_other_classes_start_anew_and_misfits_are_named(tiny, tmp_path):
    saved(tiny(model="static"), tmp_path / "static")
    functions, outputs = initialized(tiny(init_from=str(tmp_path / "static"), num_classes=7))
    assert outputs.logits.shape == (4, 7)
    assert np.abs(functions.params["specialist"]["classifier"]["kernel"]).max() < 0.1
    for overrides, words in (
        ({"channels": 3}, r"stem/conv/kernel has the shape \(3, 3, 1, 8\) there, expected \(3, 3, 3, 8\)"),
        ({"network.name": "mobilenet_v2"}, "init_from .*has"),
        ({"init_from": str(tmp_path)}, "config.json is missing"),
    ):
        config = tiny(**{"init_from": str(tmp_path / "static"), **overrides})
        with pytest.raises(UserError, match=words):
            initial_weights.initialized(config, models.functional(models.create(config)))


def test_what_the_weights_are_used_to_is_told(tiny, tmp_path, caplog):
    saved(tiny(model="static"), tmp_path / "static")
    config = parsing.resolve(tiny(init_from=str(tmp_path / "static"), **{"network.padding": "symmetric"}))
    initialized(config)
    [told] = [record.getMessage() for record in caplog.records if "are used to" in record.getMessage()]
    assert told.endswith("its weights are used to --config.network.padding=same")


@pytest.mark.slow
def test_training_starts_there_and_goes_on_without_it(tiny, tmp_path, data_dir):
    """At learning rate 0 a run ends with what it started with; a resumed run does not need `init_from` any more."""
    static = tiny(model="static", data_dir=data_dir)
    saved(static, tmp_path / "static")
    config = tiny(init_from=str(tmp_path / "static"), data_dir=data_dir, num_epochs=0.25, batch_size=256)
    config.optimizer.learning_rate = 0.0
    loop.train(parsing.resolve(config), str(tmp_path / "run"))
    run = runs.load(str(tmp_path / "run"))
    start, _ = initialized(config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), run.params, start.params)
    (tmp_path / "static").rename(tmp_path / "elsewhere")
    assert loop.train(parsing.resolve(config), str(tmp_path / "run"))["step"] == 1
