"""Files of tables, figures and claims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from varshift import VarshiftError
from varshift.report import write_atomically, write_text
from varshift_lab.render._claims import CLAIMS, verdict
from varshift_lab.render._csv import to_csv
from varshift_lab.render._figure import draw, save
from varshift_lab.render._markdown import claims_markdown, table_markdown
from varshift_lab.render._values import Results
from varshift_lab.studies import Claim, Figure, Table


def write_table(table: Table, results: Results, folder: Path) -> list[Path]:
    """Writes a table as Markdown and CSV and returns the files.

    Raises:
        VarshiftError: If they cannot be written.
    """
    _make(folder)
    return [
        write_text(folder / f"{table.name}.md", table_markdown(table, results)),
        write_text(folder / f"{table.name}.csv", to_csv(table, results)),
    ]


def write_figure(figure: Figure, results: Results, folder: Path) -> list[Path]:
    """Writes a figure as PNG and SVG and returns the files.

    Raises:
        VarshiftError: If they cannot be written.
    """
    _make(folder)
    drawing = draw(figure, results)
    return [
        write_atomically(folder / f"{figure.name}.{form}", lambda path, form=form: save(drawing, path, form))
        for form in ("png", "svg")
    ]


def write_claims(title: str, claims: Sequence[Claim], results: Results, folder: Path) -> list[Path]:
    """Writes the verdicts on some claims as Markdown and returns the file.

    Raises:
        VarshiftError: If it cannot be written.
    """
    _make(folder)
    text = claims_markdown(title, [verdict(claim, results) for claim in claims])
    return [write_text(folder / f"{CLAIMS}.md", text)]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise VarshiftError(f"--out: the folder {str(folder)!r} cannot be made: {reason}.") from error
