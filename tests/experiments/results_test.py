"""The tables of the experiments say what the CSV files do."""

import runpy
import shutil
import sys

import conftest
import pytest

from basisnet_jax import sweep
from basisnet_jax.inference import evaluate

EXPERIMENTS = conftest.ROOT / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import defaults_results
import front_results
import results
import shuffled
import tables


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


def test_runs_of_different_length_and_rate_are_not_mixed(tmp_path):
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
    assert defaults_results.grid(tmp_path / "defaults", "digits").splitlines()[2:] == [
        "| 2.0 | adamw | 0.1 | 1 | 50.00 | +10.00 |  |",
        "| 2.0 | adamw | 0.2 | 1 | 10.00 |  | +20.00 |",
        "| 6.0 | adamw | 0.1 | 1 | 70.00 | +5.00 |  |",
    ]
    with pytest.raises(ValueError, match="two runs of one seed"):
        tables.less(rows[1:2], [rows[0], rows[2]])


def test_sweeps_that_are_not_there_are_named(tmp_path, capsys):
    assert results.main([f"--runs={tmp_path}"]) == 2
    assert "holds none of the sweeps causes, defaults/digits" in capsys.readouterr().err


def test_spread_is_the_mean_and_half_of_its_interval():
    # Student's t of two degrees of freedom at 0.975 is 4.303; the standard deviation is 1, of 3 values.
    assert tables.spread([0.86, 0.87, 0.88], "+") == "+87.00 ± 2.48"
    assert tables.spread([]) == "" and tables.spread([0.86]) == "86.00"


def front_rows():
    """Two seeds of static networks at 100 and 300 multiply-adds, of a wider and worse one, and of two BasisNets.

    Each at two learning rates, of which the second is better on the validation split and worse on the test split.
    """
    networks = [("static", 0.5, 1, 100, 0.70), ("static", 1.0, 1, 300, 0.80), ("static", 2.0, 1, 400, 0.75)]
    networks += [("basisnet", 0.5, 8, 200, 0.78), ("basisnet", 0.5, 1, 150, 0.72), ("basisnet", 1.0, 1, 350, 0.80)]
    rows = []
    for model, width, num_bases, madds, top1 in networks:
        for rate, better in ((0.1, 0.05), (0.2, 0)):
            for seed, more in ((0, 0.0), (1, 0.01)):
                row = {"model": model, "width": width, "num_bases": num_bases, "seed": seed, "madds": madds}
                row |= {"optimizer.learning_rate": rate, "validation_top1": top1 + more - better}
                row |= {"top1": top1 + more + better, "train_top1": 0.9}
                if model == "basisnet":
                    row |= {
                        "shuffled_top1": 0.1,
                        "mean_top1": 0.5,
                        "coefficient_information": 0.07,
                        "preview_top1": 0.6,
                    }
                    row |= {"early_termination_share": 0.5, "early_termination_top1": top1 + more - 0.01}
                    row |= {"early_termination_mean_madds": madds / 2}
                row["run"] = ",".join(map(str, row.values()))
                rows.append(row)
    return rows


def test_networks_are_compared_at_their_best_rate_and_at_equal_multiply_adds(tmp_path):
    tables.write_runs(tmp_path / "glyphs.csv", front_rows())
    made = front_results.tables(tmp_path)
    both = "+8.00 ± 0.00 | +1.69 ± 0.00"  # static at 200: 70 + 10 ln 2 / ln 3
    assert (
        f"| BasisNet, 8 bases | 0.5 | 0.000M | 0.2 | 2 | 90.00 ± 0.00 | 78.50 ± 6.35 | {both} |" in made["front_glyphs"]
    )
    assert "| static | 2.0 | 0.000M | 0.2 | 2 | 90.00 ± 0.00 | 75.50 ± 6.35 |  |  |" in made["front_glyphs"]
    # Static at 350: 80 less 5 ln(350/300) / ln(400/300).
    assert (
        "| BasisNet, 1 basis | 1.0 | 0.000M | 0.2 | 2 | 90.00 ± 0.00 | 80.50 ± 6.35 | +0.00 ± 0.00 | +2.68 ± 0.00 |"
        in made["front_glyphs"]
    )
    assert "| 78.50 ± 6.35 | -68.50 ± 6.35 | -28.50 ± 6.35 | -6.00 ± 0.00 | 7.0 ± 0.0 |" in made["controls"]
    # Cascades stop at 75 and 175 multiply-adds with 71 and 79 %; at 100 that makes 71 + 8 ln(100/75) / ln(175/75).
    assert "| 50.0 ± 0.0 | 77.50 ± 6.35 | -1.00 ± 0.00 | +3.28 ± 0.00 |" in made["early_termination"]
    cells = "70.50 ± 6.35 at 0.000M | 78.50 ± 6.35 at 0.000M | +1.69 ± 0.00 | 77.50 ± 6.35 at 0.000M"
    assert f"| Letters in unseen fonts | 0.5 | {cells} |" in made["headline"]
    front_results.draw(tmp_path)
    assert (tmp_path / "front.png").stat().st_size > 10_000


@pytest.mark.slow
def test_coefficients_of_another_image(tiny, make_run, data_dir, tmp_path):
    """Shuffled, they change the answers; constant ones do not, and then all three figures are the evaluation's."""

    def row_at(temperature):
        folder = tmp_path / f"run{temperature}"
        config = tiny(data_dir=data_dir, eval_batch_size=77, **{"coefficients.temperature": temperature})
        make_run(config, folder)
        report = evaluate.evaluate(str(folder), threshold=1.0)
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
