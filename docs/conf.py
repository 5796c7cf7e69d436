"""Settings of the documentation. The pages of the rules are written from the rules' own docstrings."""

from __future__ import annotations

from pathlib import Path

from sphinx.application import Sphinx

from varshift import __version__
from varshift.rules import FAMILIES, all_rules

project = "varshift"
author = "The varshift maintainers"
copyright = f"2026, {author}"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 2

# Cross-references must lead somewhere; names in type hints may belong to torch or Python.
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*")]
# Classes of two rooms may have one name (History); a short name in a type hint then leads to one of them.
suppress_warnings = ["ref.python"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "varshift"
html_static_path = ["_static"]


def write_rules(app: Sphinx) -> None:
    """Writes a page for each rule and a table of all of them into docs/rules/."""
    folder = Path(app.srcdir) / "rules"
    folder.mkdir(exist_ok=True)
    pages = {f"{rule.code}.md": rule.page() for rule in all_rules()}
    rows = [f"| [{rule.code}]({rule.code}.md) | `{rule.name}` | {rule.summary} |" for rule in all_rules()]
    families = ", ".join(f"`{prefix}xx` {name}" for prefix, name in FAMILIES.items())
    pages["index.md"] = "\n".join(
        (
            "# Rules\n",
            "`varshift explain CODE` prints the same pages in a terminal. A code never changes its meaning.",
            f"The first digit is the family: {families}.\n",
            "| code | name | fires when |\n| --- | --- | --- |",
            *rows,
            "\n```{toctree}\n:hidden:\n",
            *(rule.code for rule in all_rules()),
            "```\n",
        )
    )
    for stale in {path.name for path in folder.glob("*.md")} - set(pages):
        (folder / stale).unlink()
    for name, text in pages.items():
        path = folder / name
        # a page that has not changed need not be built again
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_rules)
