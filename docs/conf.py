"""The documentation: Markdown pages, one notebook that is run, the command line's help and the API from docstrings.

    pip install -e '.[docs]' && sphinx-build -W --keep-going docs build/docs

Nothing is fetched while it is built.
"""

import dataclasses
import importlib.metadata
import inspect
import os
import pathlib
import re

from sphinx.util.inspect import stringify_signature

DOCS = pathlib.Path(__file__).resolve().parent
EXPERIMENTS = DOCS.parent / "experiments"
os.environ["COLUMNS"] = "82"  # of the commands' help
os.environ["NO_COLOR"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

project = "basisnet_jax"
author = "The basisnet_jax authors"
copyright = author
release = version = importlib.metadata.version("basisnet_jax")

extensions = [
    "myst_nb",  # brings myst_parser
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 900  # seconds, of one cell
nb_execution_show_tb = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
autosummary_generate = False
default_role = "code"  # docstrings have `names` as Markdown does
napoleon_use_rtype = False
suppress_warnings = ["ref.python"]  # the public names stand here twice: in the package and in their module

html_theme = "sphinx_book_theme"
html_title = f"basisnet_jax {release}"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"use_download_button": True, "home_page_in_toc": True}


def setup(app):
    app.connect("source-read", generate)
    app.connect("autodoc-process-docstring", as_rst, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", of_init)
    app.connect("autodoc-skip-member", skip_fields)


def generate(app, docname: str, source: list[str]) -> None:
    """Fills in what is not written by hand: help of the verbs, list of configs, READMEs of the studies."""
    if docname == "command_line":
        source[0] = source[0].replace("<!-- verbs -->", verbs()).replace("<!-- configs -->", configs())
    if docname == "guides/recipes":
        text = (EXPERIMENTS / "README.md").read_text(encoding="utf-8")
        text = text.partition("## Assumptions\n")[2].partition("\n## ")[0]
        source[0] = source[0].replace("<!-- assumptions -->", moved(text, EXPERIMENTS, "guides"))
    if docname.startswith("studies/"):
        folder = EXPERIMENTS / docname.removeprefix("studies/")
        source[0] = moved((folder / "README.md").read_text(encoding="utf-8"), folder, "studies")


def verbs() -> str:
    from basisnet_jax import cli, flags

    parsers = flags.create_parsers(cli.VERBS)
    return "\n\n".join(f"## basisnet {name}\n\n```text\n{parser.format_help()}```" for name, parser in parsers.items())


def configs() -> str:
    from basisnet_jax import parsing

    rows = [f"| `{name}` | {summary} | {given} |" for name, summary, given in parsing.described_configs()]
    return "\n".join(["| config | what it trains | arguments (defaults) |", "|---|---|---|", *rows])


def moved(text: str, folder: pathlib.Path, place: str) -> str:
    """Text of a README in `folder`, whose links lead from a page in `place` to where they led."""

    def link(match):
        target = (folder / match["path"]).resolve()
        if target.is_dir() or target.name == "README.md":
            target = DOCS / "studies" / f"{(target if target.is_dir() else target.parent).name}.md"
        return f"{match['start']}({os.path.relpath(target, DOCS / place)})"

    return re.sub(r"(?P<start>!?\[[^\]]*\])\((?P<path>[^):]+)\)", link, text)


def as_rst(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are written as Markdown is: blocks are set off by a blank line and an indent, and * and | are plain.

    The comment on a field of a class becomes its text.
    """
    if what == "class" and (dataclasses.is_dataclass(obj) or hasattr(obj, "_fields")):
        field = re.compile(r"    (\w+): [^#]*?  # (.*)")
        found = [match for match in map(field.fullmatch, inspect.getsource(obj).splitlines()) if match]
        lines += ["", "Attributes:", *(f"  {match[1]}: {match[2]}" for match in found)] if found else []
    shown, indent, blank, literal = [], 0, False, False
    for line in lines:
        if line.strip():
            text = line.lstrip()
            deeper = len(line) - len(text) > indent
            if blank and deeper and not literal and not text.startswith(">>>"):
                shown += [" " * indent + "::", ""]
                literal = True
            literal &= deeper
            if not literal:
                indent = len(line) - len(text)
                if text.startswith("- ") and shown and shown[-1].strip() and not shown[-1].lstrip().startswith("-"):
                    shown += [""] * (not shown[-1].startswith(" " * (indent + 1)))
                line = line if re.match(r">>>|\.\.\.|\*\*?\w+:", text) else plain(line)
        blank = not line.strip()
        shown.append(line)
    lines[:] = shown


def plain(line: str) -> str:
    """Escapes what reStructuredText would take for markup, outside of `code` and *emphasis*."""
    parts = re.split(r"(`[^`]*`|(?<!\w)\*\w[^*`]*\w\.?\*(?!\w))", line)
    return "".join(
        part if i % 2 else re.sub(r"([*|]|\b_|(?<=\w)_(?!\w))", r"\\\1", part) for i, part in enumerate(parts)
    )


def of_init(app, what, name, obj, options, signature, returned):
    """The arguments of an NNX module: its metaclass hides them."""
    from flax import nnx

    if what == "class" and issubclass(obj, nnx.Module) and signature and signature.startswith("(*args"):
        parameters = [*inspect.signature(obj.__init__).parameters.values()]
        return stringify_signature(inspect.Signature(parameters[1:]), unqualified_typehints=True), None
    return None


def skip_fields(app, what, name, obj, skip, options):
    """Of a NamedTuple, "Alias for field number 0" tells nothing."""
    return True if type(obj).__name__ == "_tuplegetter" else None
