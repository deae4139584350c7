"""The tables of the experiments say what the CSV files do."""

import csv
import json
import pathlib
import runpy
import shutil
import sys

import pytest

from basisnet_jax import evaluate, sweep

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import fashion_mnist_results
import results
import shuffled
import tables


@pytest.fixture
def script():
    return fashion_mnist_results


def test_the_studies_have_the_tables_of_their_csv_files():
    made = results.tables()
    readmes = [path.read_text() for path in results.READMES]
    assert [tables.with_tables(text, made) for text in readmes] == readmes
    assert made and all(table in "".join(readmes) for table in made.values())


def test_a_cause_is_compared_with_the_defaults_and_with_static_seed_by_seed(monkeypatch, tmp_path):
    def runs(label, **top1):
        changes = runpy.run_path(str(EXPERIMENTS / "causes" / "sweep.py"))["CHANGES"][label]
        model = changes.get("config.model", "basisnet")
        rows = [(sweep.name_of({**changes, "seed": int(seed[1:])}), seed[1:], value) for seed, value in top1.items()]
        return [
            {"run": run, "model": model, "seed": seed, "top1": value, "coefficient_information": 0.02}
            for run, seed, value in rows
        ]

    rows = runs("static", s0=0.7, s1=0.8) + runs("defaults", s0=0.75, s1=0.83) + runs("old", s1=0.63)
    rows += runs("no clipping, static", s0=0.5, s1=0.6) + runs("no clipping", s0=0.6, s1=0.7)
    (tmp_path / "causes").mkdir()
    shutil.copy(EXPERIMENTS / "causes" / "sweep.py", tmp_path / "causes")
    monkeypatch.setattr(results, "HERE", tmp_path)
    tables.write_csv(tmp_path / "causes" / "sweep.csv", rows)
    lines = results.causes().splitlines()[2:]
    assert lines[0] == "| static | 75.00 ± 63.53 |  |  |  |"  # Student's t of one degree: 12.706
    assert "| defaults | 79.00 ± 50.82 |  | +4.00 ± 12.71 | 2.0 ± 0.0 |" in lines
    assert "| old | 63.00 | -20.00 | -17.00 | 2.0 |" in lines
    assert "| no clipping | 65.00 ± 63.53 | -14.00 ± 12.71 | +10.00 ± 0.00 | 2.0 ± 0.0 |" in lines
    results.draw_causes(tmp_path / "causes.png")


def test_runs_of_different_length_and_rate_are_not_mixed(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "HERE", tmp_path)
    (tmp_path / "defaults").mkdir()
    rows = [
        {
            **{"run": f"{model}{bases}{epochs}{rate}", "model": model, "num_bases": bases, "seed": 0},
            **{"num_epochs": epochs, "optimizer.name": "adamw", "optimizer.learning_rate": rate, "top1": top1},
        }
        for epochs, rate, model, bases, top1 in (
            (2.0, 0.1, "static", 1, 0.5),
            (2.0, 0.1, "basisnet", 4, 0.6),
            (6.0, 0.1, "static", 1, 0.7),
            (6.0, 0.1, "basisnet", 4, 0.75),
            (2.0, 0.2, "static", 1, 0.1),
            (2.0, 0.2, "basisnet", 8, 0.3),
        )
    ]
    tables.write_runs(tmp_path / "defaults" / "digits.csv", rows)
    assert results.defaults("digits").splitlines()[2:] == [
        "| 2.0 | adamw | 0.1 | 1 | 50.00 | +10.00 |  |",
        "| 6.0 | adamw | 0.1 | 1 | 70.00 | +5.00 |  |",
        "| 2.0 | adamw | 0.2 | 1 | 10.00 |  | +20.00 |",
    ]
    with pytest.raises(ValueError, match="two runs of one seed"):
        tables.less(rows[1:2], [rows[0], rows[2]])


def test_sweeps_that_are_not_there_are_named(tmp_path, capsys):
    assert results.main([f"--runs={tmp_path}"]) == 2
    assert "holds none of the sweeps causes, defaults/digits" in capsys.readouterr().err


def test_the_readmes_have_the_tables_of_the_csv_files(script):
    texts = [path.read_text() for path in script.READMES]
    assert [tables.with_tables(text, script.tables()) for text in texts] == texts
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
    assert tables.spread([0.86, 0.87, 0.88], "+") == "+87.00 ± 2.48"
    assert tables.spread([]) == "" and tables.spread([0.86]) == "86.00"


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
    made = script.tables()
    assert "| 0.5 | static | 0.500M | 80.00 ± 0.00 |  |" in made["headline"]
    assert "|  | with early termination | 0.300M on average | 89.00 ± 0.00 |  |" in made["headline"]
    both = "+10.00 ± 0.00 | +10.00 ± 0.00"
    assert f"| basisnet | 0.5 | 8 | 0.500M | 70.00 ± 0.00 | 90.00 ± 0.00 | {both} |" in made["bases_width"]
    assert "| static | 0.5 | 1 | 0.500M | 70.00 ± 0.00 | 80.00 ± 0.00 |  |  |" in made["bases_width"]
    row = "| 0.5 | 8 | 0.500M | 70.00 ± 0.00 | 90.00 ± 0.00 |"
    assert f"| basisnet {row} {both} |" in made["longer"]
    row, both = row.replace("90.00", "89.00"), both.replace("10.00", "9.00")
    assert f"| basisnet, constant coefficients {row} {both} | 80.00 ± 0.00 | -1.00 ± 0.00 |" in made["longer"]
    assert "| 50.0 ± 0.0 | 0.300M | 40.0 ± 0.0 | -1.00 ± 0.00 |" in made["early_termination"]
    assert "| CondConv | 0.5 | 0.500M | 70.00 ± 0.00 | 80.00 ± 0.00 |  | -10.00 ± 0.00 |" in made["baselines"]
    assert "| distillation | 0.5 | 0.500M | 70.00 ± 0.00 | 90.00 ± 0.00 |" in made["recipe"]
    assert "| constant | 0.5 | 0.500M | 70.00 ± 0.00 | 90.00 ± 0.00 |" in made["coefficients"]
    assert len(list(tmp_path.glob("*.png"))) == 8


@pytest.mark.slow
def test_coefficients_of_another_image(tiny, make_run, data_dir, tmp_path):
    """Shuffled, they change the answers; constant ones do not, and then all three figures are the evaluation's."""

    def row_at(temperature):
        folder = tmp_path / f"run{temperature}"
        config = tiny(data_dir=data_dir, eval_batch_size=77, **{"coefficients.temperature": temperature})
        make_run(config, folder)
        report = evaluate.evaluate(config, str(folder), threshold=1.0)
        assert shuffled.main([str(folder), f"--output={folder}.csv"]) == 0
        (row,) = tables.read_csv(folder.parent / f"{folder.name}.csv")
        assert float(row["top1"]) == pytest.approx(report["top1"], abs=1e-5)
        return row

    row = row_at(0.01)
    assert len({row["top1"], row["shuffled_top1"], row["mean_top1"]}) == 3
    row = row_at(1e9)
    assert row["top1"] == row["shuffled_top1"] == row["mean_top1"]


def test_a_folder_without_a_basisnet_has_nothing_to_shuffle(tmp_path, capsys):
    assert shuffled.main([str(tmp_path), f"--output={tmp_path}/a.csv"]) == 2
    assert "holds no finished run of a BasisNet" in capsys.readouterr().err
