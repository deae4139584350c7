"""Puts the rows that `train.py` left into the CSV files beside the sweep files: front/glyphs.py, front/glyphs.csv.

python experiments/vmapped/collect.py OUT/*.json

A row replaces that of its run, if the CSV file has one.
"""

import argparse
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tables import read_csv, write_runs


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=pathlib.Path, nargs="+")
    new: dict[pathlib.Path, list[dict]] = {}
    for file in parser.parse_args(argv).files:
        for row in json.loads(file.read_text()):
            new.setdefault(HERE.parents[1] / pathlib.Path(row["sweep"]).with_suffix(".csv"), []).append(row)
    for path, rows in new.items():
        merged = {row["run"]: row for row in [*(read_csv(path) if path.exists() else []), *rows]}
        write_runs(path, list(merged.values()))
        print(f"{path}: {len(merged)} runs")


if __name__ == "__main__":
    main()
