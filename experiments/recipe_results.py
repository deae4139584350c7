"""The table of `recipe`: each part of the recipe on its own, for the static network and for BasisNet."""

import pathlib
import runpy

from tables import column, less, read_csv, spread, table_of

from basisnet_jax import sweep

FILE = "fashion_mnist"
NOTHING_ADDED = "augmentation alone"


def tables(folder: pathlib.Path) -> dict[str, str]:
    if not (folder / f"{FILE}.csv").exists():
        return {}
    names = runpy.run_path(str(folder / f"{FILE}.py"))
    rows = {row["run"]: row for row in read_csv(folder / f"{FILE}.csv")}

    def runs(model: str, part: dict) -> list[dict]:
        found = (sweep.name_of({"model": model, **part, "seed": seed}) for seed in range(names["SEEDS"]))
        return [rows[name] for name in found if name in rows]

    parts = {**names["OF_BOTH"], **names["OF_BASISNET"]}
    plain = {model: runs(model, {}) for model in ("static", "basisnet")}
    lines = []
    for label, part in parts.items():
        cells = []
        static, basisnet = (runs(model, part) for model in ("static", "basisnet"))
        if not static and not basisnet:
            continue
        for group, without in ((static, plain["static"]), (basisnet, plain["basisnet"])):
            cells.append(spread(column(group, "top1")) if group else "")
            cells.append(spread(less(group, without), "+") if group and label != NOTHING_ADDED else "")
        against = static if label in names["OF_BOTH"] else plain["static"]
        comparable = basisnet and len(against) == len(basisnet)
        cells.append(spread(less(basisnet, against), "+") if comparable else "")
        lines.append([label, *cells])
    change = f"to {NOTHING_ADDED}"
    columns = ["", "static", change, "BasisNet, 8 bases", change, "BasisNet to static"]
    return {"recipe": table_of(columns, lines)}
