"""The tables of experiments/README.md say what the CSV files of the experiments do."""

import csv
import importlib.util
import json
import pathlib
import runpy
import shutil

import pytest

from basisnet_jax import sweep

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("fashion_mnist_results", EXPERIMENTS / "fashion_mnist" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readmes_have_the_tables_of_the_csv_files(script):
    texts = [path.read_text() for path in script.READMES]
    assert [script.with_tables(text) for text in texts] == texts
    assert all(table in "".join(texts) for table in script.tables().values())


def test_the_static_network_at_equal_multiply_adds_lies_between_the_two_nearest_of_its_seed(script):
    rows = [
        {"model": "static", "seed": seed, "madds": madds, "top1": top1}
        for seed, madds, top1 in (("0", "200", "0.8"), ("0", "100", "0.7"), ("1", "100", "0.1"), ("1", "300", "0.2"))
    ]
    group = [
        {"seed": "0", "madds": "125", "top1": "0.9"},
        {"seed": "1", "madds": "200", "top1": "0.1"},
        {"seed": "1", "madds": "301", "top1": "0.9"},  # beyond the widest
        {"seed": "2", "madds": "200", "top1": "0.9"},  # no static network has this seed
    ]
    assert script.at_equal_madds(rows, group) == pytest.approx([0.9 - 0.725, 0.1 - 0.15])


def test_bases_are_compared_with_one_basis_of_their_width_and_seed(script, monkeypatch):
    runs = [("0.25", "0", "1", 0.8), ("0.5", "0", "1", 0.7), ("0.25", "0", "2", 0.81), ("0.5", "0", "2", 0.72)]
    runs += [("0.5", "1", "2", 0.1)]  # no run with one basis has this seed
    keys = ("width", "seed", "num_bases", "top1")
    rows = [{"model": "basisnet"} | dict(zip(keys, run, strict=True)) for run in runs]
    monkeypatch.setattr(script, "read", lambda name: [*rows, rows[0] | {"model": "static", "top1": 0.0}])
    assert script.bases().splitlines()[2:] == ["| 2 | 2 | +1.50 ± 6.35 |"]  # Student's t of one degree: 12.706


def test_a_folder_without_sweeps_is_named_in_one_line(script, tmp_path, capsys):
    assert script.main([f"--runs={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/bases_width/sweep.csv does not exist; run the sweep first\n"


def test_spread_is_the_mean_and_half_of_its_interval(script):
    # Student's t of two degrees of freedom at 0.975 is 4.303; the standard deviation is 1, of 3 values.
    assert script.spread([0.86, 0.87, 0.88], "+") == "+87.00 ± 2.48"
    assert script.spread([]) == "" and script.spread([0.86]) == "86.00"


def test_csv_files_tables_and_pictures_follow_from_the_sweeps(script, tmp_path, monkeypatch):
    """Of sweeps in which every BasisNet has 0.9 and every other network 0.8, and stops half of the images for 0.01."""
    for path in (EXPERIMENTS / "fashion_mnist").glob("*.py"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(script, "HERE", tmp_path)
    for name in ("bases_width", "longer", "coefficients", "baselines", "recipe"):
        rows = []
        for yielded in runpy.run_path(str(tmp_path / f"{name}.py"))["sweep"]():
            run, model = sweep.name_of(yielded), {"dy": "dynamic"}.get(yielded.get("model"), yielded.get("model"))
            row = {
                "run": run,
                "model": model or "basisnet",
                "width": yielded.get("width", 0.5),
                "seed": yielded["seed"],
            }
            row |= {"num_bases": yielded.get("bases", 1 if model == "static" else 8), "madds": 1e6 * row["width"]}
            row |= {"top1": 0.9 if row["model"] == "basisnet" else 0.8, "train_top1": 0.7}
            if row["model"] == "basisnet":
                row["top1"] -= 0.01 * ("temperature=1000000.0" in run and name == "longer")
                row |= {"preview_top1": 0.5, "early_termination_share": 0.5, "early_termination_top1": 0.89}
                row |= {"early_termination_mean_madds": 0.6e6 * row["width"]}
                folder = tmp_path / "runs" / name / "runs" / run
                folder.mkdir(parents=True)
                curve = [{"top1": top1, "mean_madds": share * row["madds"]} for top1, share in ((0.9, 1), (0.89, 0.6))]
                (folder / "evaluation.json").write_text(json.dumps({"early_termination": {"curve": curve}}))
            rows.append(row)
        (tmp_path / "runs" / name).mkdir(parents=True, exist_ok=True)
        with open(tmp_path / "runs" / name / "sweep.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(column for row in rows for column in row)))
            writer.writeheader()
            writer.writerows(rows)
    script.collect(tmp_path / "runs")
    script.draw()
    tables = script.tables()
    assert "| 0.5 | static | 0.500M | 80.00 ± 0.00 |  |" in tables["headline"]
    assert "|  | with early termination | 0.300M on average | 89.00 ± 0.00 |  |" in tables["headline"]
    both = "+10.00 ± 0.00 | +10.00 ± 0.00"
    assert f"| basisnet | 0.5 | 8 | 0.500M | 70.00 ± 0.00 | 90.00 ± 0.00 | {both} |" in tables["bases_width"]
    assert "| static | 0.5 | 1 | 0.500M | 70.00 ± 0.00 | 80.00 ± 0.00 |  |  |" in tables["bases_width"]
    row = "| 0.5 | 8 | 0.500M | 70.00 ± 0.00 | 90.00 ± 0.00 |"
    assert f"| basisnet {row} {both} |" in tables["longer"]
    row, both = row.replace("90.00", "89.00"), both.replace("10.00", "9.00")
    assert f"| basisnet, constant coefficients {row} {both} | 80.00 ± 0.00 | -1.00 ± 0.00 |" in tables["longer"]
    assert "| 50.0 ± 0.0 | 0.300M | 40.0 ± 0.0 | -1.00 ± 0.00 |" in tables["early_termination"]
    assert "| CondConv | 0.5 | 0.500M | 70.00 ± 0.00 | 80.00 ± 0.00 |  | -10.00 ± 0.00 |" in tables["baselines"]
    assert "| distillation | 0.5 | 0.500M | 70.00 ± 0.00 | 90.00 ± 0.00 |" in tables["recipe"]
    assert "| constant | 0.5 | 0.500M | 70.00 ± 0.00 | 90.00 ± 0.00 |" in tables["coefficients"]
    assert len(list(tmp_path.glob("*.png"))) == 8
