"""What commands make of odd inputs and signals: one row for each case, and how many there are of each kind.

    python experiments/odd_inputs.py            # some minutes; with --quick one

A case is a test marked `odd(kind)`, wherever it is; the fixture `refused` and `record_told` of tests/conftest.py record
what its command did: the exit code, how many lines it had on stderr, and whether a traceback was among them.
"""

import argparse
import collections
import contextlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
COLUMNS = ("kind", "case", "as expected", "exit code", "lines", "traceback")


class Table:
    """A plugin of pytest that makes a row of each marked test."""

    def __init__(self):
        self.kinds: dict[str, str] = {}
        self.rows: list[tuple] = []

    def pytest_itemcollected(self, item):
        if marker := item.get_closest_marker("odd"):
            self.kinds[item.nodeid] = marker.args[0]

    def pytest_runtest_logreport(self, report):
        if report.nodeid in self.kinds and (report.when == "call" or report.outcome != "passed"):
            told = dict(report.user_properties)
            case = report.nodeid.rpartition("::")[2].removeprefix("test_")
            facts = [told.get(name, "-") for name in ("code", "lines", "traceback")]
            self.rows.append((self.kinds[report.nodeid], case, report.outcome, *facts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", default=[str(ROOT / "tests")], help="files or folders with marked tests")
    parser.add_argument("--quick", action="store_true", help="without those that train")
    args = parser.parse_args()
    table = Table()
    with contextlib.redirect_stdout(sys.stderr):
        code = pytest.main(
            ["-n0", "-q", "-m", "odd and not slow" if args.quick else "odd", *args.tests], plugins=[table]
        )
    for row in [COLUMNS, *sorted(table.rows)]:
        print("| " + " | ".join(ascii(str(cell))[1:-1].replace("|", r"\|") for cell in row) + " |")
    print()
    for kind, count in sorted(collections.Counter(row[0] for row in table.rows).items()):
        rows = [row for row in table.rows if row[0] == kind]
        expected, tracebacks = sum(row[2] == "passed" for row in rows), sum(row[-1] is True for row in rows)
        print(f"{kind}: {count} cases, {expected} as expected, {tracebacks} tracebacks")
    sys.exit(int(code))


if __name__ == "__main__":
    main()
