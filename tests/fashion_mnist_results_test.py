"""The tables of experiments/README.md are what the CSV files beside the experiments say."""

import importlib.util
import pathlib

import pytest

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("fashion_mnist_results", EXPERIMENTS / "fashion_mnist" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["bases_width", "early_termination", "recipe", "baselines", "coefficients"])
def test_the_readme_has_the_table_of_the_csv(script, name):
    assert script.tables()[name] in (EXPERIMENTS / "README.md").read_text()


def test_the_static_network_at_equal_multiply_adds_lies_between_the_two_nearest_of_its_seed(script):
    rows = [
        {"model": "static", "seed": seed, "madds": madds, "top1": top1}
        for seed, madds, top1 in (("0", "200", "0.8"), ("0", "100", "0.7"), ("1", "100", "0.1"), ("1", "300", "0.2"))
    ]
    assert script.static_at(rows, {"seed": "0", "madds": "125"}) == pytest.approx(0.725)
    assert script.static_at(rows, {"seed": "1", "madds": "200"}) == pytest.approx(0.15)


def test_spread_is_the_mean_and_half_of_its_interval(script):
    # Student's t of two degrees of freedom at 0.975 is 4.303; the standard deviation is 1, of 3 values.
    assert script.spread([0.86, 0.87, 0.88], "+") == "+87.00 ± 2.48"
    assert script.spread([]) == ""
