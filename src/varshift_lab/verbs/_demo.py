"""``varshift demo``."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

WIDEST = 110  # of a paragraph, in characters

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from varshift_lab._demo import Demo, Outcome


def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where to write the sick network's report.")
    ] = Path("report.json"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of weights, masks and order.")] = 0,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the training digits.")] = 5,
    depth: Annotated[int, typer.Option("--depth", help="Layers of the networks, 6 n + 2.")] = 110,
    full: Annotated[bool, typer.Option("--full", help="Show every finding and every norm.")] = False,
    svg: Annotated[
        Path | None,
        typer.Option(
            "--svg",
            metavar="FILE",
            help="Draw the check of the sick network.",
            hidden=True,
            show_default=False,
        ),
    ] = None,
) -> int:
    """Train a sick and a healthy network on real digits, check both, fix the sick one.

    Two pre-activation residual networks learn scikit-learn's handwritten digits. They differ in one thing:
    the sick one has dropout in front of the last norm of each residual branch, the healthy one after its
    last norm.
    """
    from varshift import VarshiftError
    from varshift.report import check_writable

    for path in (out, svg):
        if path is not None:
            check_writable(path)

    from varshift._threads import one_thread
    from varshift_lab._demo import Demo, DemoSettings

    try:
        run = Demo(DemoSettings(seed=seed, epochs=epochs, depth=depth))
    except (ImportError, ValueError) as error:
        raise VarshiftError(str(error)) from error
    with one_thread():
        _play(run, out=out, full=full, svg=svg)
    return 0


def _play(run: Demo, *, out: Path, full: bool, svg: Path | None) -> None:
    from varshift.cli import progress_bar, wide_console
    from varshift.fixes import lines_of
    from varshift.report import FORMATS, print_lines, print_report, write_text
    from varshift.report import WIDEST as WIDEST_LINE
    from varshift_lab._story import tell

    console = wide_console()
    _introduce(console, run)
    with progress_bar() as progress:
        seconds = run.train(run.sick, "training the sick network", progress)
        healthy_seconds = run.train(run.healthy, "training the healthy network", progress)
    console.print(f"Trained: the sick one in {seconds:.0f} s, the healthy one in {healthy_seconds:.0f} s.")

    def examine(title: str, network: Any) -> Outcome:
        _heading(console, title)
        with progress_bar() as progress:
            report = run.check(network, progress)
        print_report(report, console, full=full)
        return run.outcome(network, report)

    before = examine("The sick network: varshift.check(sick, loader)", run.sick)
    before.report.to_json(out)
    if svg is not None:
        write_text(svg, FORMATS["svg"].render(before.report))
    healthy = examine("The healthy network: varshift.check(healthy, loader)", run.healthy)
    _heading(console, "The cure: varshift.fix(sick, report, loader=loader)")
    with progress_bar() as progress:
        cured, cure_seconds = run.fix(run.sick, before.report, progress)
    print_lines(lines_of(cured, width=min(console.width, WIDEST_LINE), full=full), console)
    after = run.outcome(cured.model, cured.after or before.report)
    if cured.after is not None:
        _heading(console, "The cured network: cured.after, the check that fix has run again")
        print_report(cured.after, console, full=full)

    _heading(console, "What happened")
    console.print(_table(before, after, healthy))
    for paragraph in tell(before, after, healthy, cured, cure_seconds):
        console.print()
        _print_paragraph(console, paragraph)
    console.print()
    console.print(f"The report on the sick network as trained is in {out}.", markup=False)


def _introduce(console: Console, run: Demo) -> None:
    settings, data = run.settings, run.data
    blocks = (settings.depth - 2) // 2
    console.print(
        f"{len(data.train_images)} handwritten digits of 8 x 8 pixels to train on, {len(data.test_images)} "
        f"held out. Two pre-activation residual networks of {settings.depth} layers, from the same weights:\n"
        f"  sick     dropout {settings.dropout:g} in front of the last norm of each of {blocks} branches\n"
        f"  healthy  dropout {settings.dropout:g} once, after the last norm\n"
        f"Each is trained for {settings.epochs} epochs; that takes most of the time.",
        markup=False,
    )


def _heading(console: Console, text: str) -> None:
    console.print()
    console.rule(
        f"[bold]{text}[/bold]", align="left", style="cyan", characters="━" if _rich(console) else "="
    )


def _print_paragraph(console: Console, text: str) -> None:
    # textwrap keeps a number and its unit together, rich would not
    text = textwrap.fill(text, min(console.width, WIDEST)).replace("\N{NO-BREAK SPACE}", " ")
    console.print(text if _rich(console) else text.replace("±", "+-"), markup=False, soft_wrap=True)


def _rich(console: Console) -> bool:
    """Whether the console can show more than ASCII."""
    return (console.encoding or "").startswith("utf")


def _table(before: Outcome, after: Outcome, healthy: Outcome) -> Table:
    from rich.table import Table

    from varshift_lab._story import in_training

    table = Table(box=None, pad_edge=False, show_edge=False)
    table.add_column("loss and accuracy")
    for heading in ("train()", "eval()", "eval(), cured"):
        table.add_column(heading, justify="right")
    for name, outcome, cured in (("sick", before, after), ("healthy", healthy, None)):
        trained = in_training(outcome.report)
        table.add_row(
            f"{name}, training digits",
            _cell(*trained) if trained else "",
            _cell(outcome.training.loss, outcome.training.accuracy),
            _cell(cured.training.loss, cured.training.accuracy) if cured else "",
        )
        table.add_row(
            f"{name}, held-out digits",
            "",
            _cell(outcome.held_out.loss, outcome.held_out.accuracy),
            _cell(cured.held_out.loss, cured.held_out.accuracy) if cured else "",
        )
    return table


def _cell(loss: float, accuracy: float) -> str:
    return f"{loss:.3f}  {100 * accuracy:5.1f} %"
