"""README and documentation: their Python runs, their commands parse, their links lead somewhere.

`.ci/run` builds the documentation, with the notebook.
"""

import contextlib
import doctest
import importlib
import importlib.util
import io
import json
import pathlib
import re
import shlex

import pytest
from conftest import ROOT

import basisnet_jax as bnj
from basisnet_jax import cli, flags

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
NOTEBOOK = ROOT / "docs" / "quick_start.ipynb"
# What a page may name that is not in the repository: what a command writes, or stands for the user's own.
OF_THE_USER = ("DIR", "runs", "images", "build", "exported", "checkpoints")


def blocks(page: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def named(page: pathlib.Path) -> str:
    return str(page.relative_to(ROOT))


def commands() -> list[tuple[str, list[str]]]:
    """(page, arguments of `basisnet`) of every command in a block of bash."""
    found = []
    for page in PAGES:
        for line in "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["sbatch"]:
                start = words.index("experiments/slurm/train.sbatch")
                words = ["basisnet", "train", *words[start + 1 :]]
            if words[:1] == ["basisnet"]:
                found.append((named(page), words[1:]))
    return found


# Blocks of the language `py` are shown without being run.
@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=named)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        exec(compile(block, named(page), "exec"), names)


def test_commands_parse(monkeypatch):
    monkeypatch.chdir(ROOT)
    parsers = flags.create_parsers(cli.VERBS)
    found = commands()
    assert {words[0] for _, words in found} == set(cli.VERBS)
    for page, words in found:
        try:
            given = flags.read(parsers[words[0]], words[1:])
        except Exception as error:
            pytest.fail(f"{page}: basisnet {shlex.join(words)}: {error}")
        assert words[0] != "sweep" or pathlib.Path(given.sweep).is_file()


def test_links_and_paths_lead_somewhere():
    texts = {page: page.read_text() for page in [*PAGES, ROOT / "CHANGELOG.md"]}
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    texts[NOTEBOOK] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    missing = []
    for page, text in texts.items():
        text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^)#\s]+)", text):
            if not link.startswith(("http:", "https:")) and not (page.parent / link).exists():
                missing.append(f"{named(page)}: {link}")
        if page.name == "CHANGELOG.md":  # it also names what was before
            continue
        folders = (ROOT, ROOT / "basisnet_jax", ROOT / "configs", page.parent)
        for path in re.findall(r"`(\.?\w[\w.-]*(?:/[\w.-]+)*/?)`", text):
            if ("/" not in path and not path.endswith((".py", ".md"))) or path.split("/")[0] in OF_THE_USER:
                continue
            if not any((folder / path).exists() for folder in folders):
                missing.append(f"{named(page)}: {path}")
    assert not missing


@pytest.mark.slow
def test_examples_of_the_public_names_hold():
    failed = io.StringIO()
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE)  # whatever pytest was given
    without = []
    for name, place in bnj._PLACES.items():
        module = importlib.import_module(f"basisnet_jax.{place}")
        found = doctest.DocTestFinder(recurse=False).find(getattr(bnj, name), name, globs=vars(module).copy())
        without += [name] if not any(test.examples for test in found) else []
        with contextlib.redirect_stderr(io.StringIO()):
            for test in found:
                runner.run(test, out=failed.write)
    assert not without
    assert not failed.getvalue()


def test_the_notebook_is_stored_without_outputs():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells and not any(cell["outputs"] or cell["execution_count"] for cell in cells)
