"""``varshift compare``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from varshift._errors import VarshiftError
from varshift._printable import printable
from varshift.cli._options import (
    DATA,
    ArgOption,
    DataArgOption,
    DeviceOption,
    ForwardOption,
    JsonOption,
    LossOption,
    PrefixOption,
    RequiredDataOption,
    StrictOption,
    TargetArgument,
    TrustOption,
    VerboseOption,
    WeightsKeyOption,
    WeightsOption,
)

if TYPE_CHECKING:
    from torch import nn

    from varshift import Comparison
    from varshift.cli._sources import Weights
    from varshift.probe import Progress

WHAT, WHERE = "What is compared", "Where it runs"


def compare(
    target: TargetArgument,
    data: RequiredDataOption,
    arg: ArgOption = None,
    data_arg: DataArgOption = None,
    weights: WeightsOption = None,
    weights_key: WeightsKeyOption = None,
    prefix: PrefixOption = None,
    strict: StrictOption = False,
    trust: TrustOption = False,
    device: DeviceOption = None,
    val_data: Annotated[
        str | None,
        typer.Option(
            "--val-data",
            metavar="MODULE:NAME",
            help="Batches to judge on; by default those of `--data`.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            "--train",
            metavar="MODULE:FUNCTION",
            help="The training, a function of network and loader. By default a short loop: AdamW, a warm-up "
            "and a cosine.",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variants",
            metavar="NAMES",
            help="Variants, separated by commas: names (`no-noise,group-norm`), or `NAME=MODULE:FUNCTION`, a "
            "function from a network to a network. `as-is` is always there.",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of seeds.", rich_help_panel=WHAT)] = 3,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            min=1,
            help="Passes over the data of the built-in loop, 5 by default; told to `--train`.",
            rich_help_panel=WHAT,
            show_default=False,
        ),
    ] = None,
    learning_rate: Annotated[
        float,
        typer.Option(
            "--learning-rate", help="Largest learning rate of the built-in loop.", rich_help_panel=WHAT
        ),
    ] = 1e-3,
    measure: Annotated[
        str,
        typer.Option(
            "--measure",
            help="What variants are judged by: `loss` or `accuracy` in eval(), or a figure that `--train` "
            "returns (lower is better, unless `--higher`).",
            rich_help_panel=WHAT,
        ),
    ] = "loss",
    higher: Annotated[
        bool,
        typer.Option("--higher", help="Higher figures of `--measure` are better.", rich_help_panel=WHAT),
    ] = False,
    forward: ForwardOption = None,
    loss: LossOption = None,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            metavar="DIR",
            help="Folder where results are kept: interrupted or killed, the same command goes on, and one "
            "with more seeds or variants trains what is missing.",
            rich_help_panel=WHERE,
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            min=0,
            help="Worker processes of one thread each; 0 trains in this process.",
            rich_help_panel=WHERE,
        ),
    ] = 0,
    early_stop: Annotated[
        bool,
        typer.Option(
            "--early-stop/--no-early-stop",
            help="Give no more seeds to a variant that is settled to be worse than another one.",
            rich_help_panel=WHAT,
        ),
    ] = True,
    retry: Annotated[
        bool,
        typer.Option("--retry", help="Try trainings that failed again.", rich_help_panel=WHERE),
    ] = False,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Train everything again, whatever the store holds.", rich_help_panel=WHERE
        ),
    ] = False,
    json: JsonOption = None,
    verbose: VerboseOption = False,
) -> int:
    """Train variants of a network over seeds, and say which differ.

    Every variant is trained with the same seeds: from the same weights where shapes agree, on the same
    samples in the same order. A paired test, corrected for the number of pairs, says whether two variants
    differ, or how many seeds would tell.

    Exit status: 0 all trainings are done, 1 some failed, 2 it could not be done, 130 interrupted.

    `varshift compare nets.py:build --data nets.py:loader --val-data nets.py:val_loader`

    `varshift compare nets.py:build --data nets.py:loader --variants no-noise,wide=nets.py:wider --seeds 5
    --store runs --workers 2`
    """
    from varshift.cli._arguments import check_device, parse_arguments
    from varshift.cli._json import check_json, users_output, write_json
    from varshift.cli._sources import Weights, check_sources

    arguments, data_arguments = parse_arguments(arg), parse_arguments(data_arg, "--data-arg")
    check_json(json)
    names = _names(variants)
    source = Weights(weights, weights_key, prefix, strict, trust)
    check_sources(target, source, data=data, val_data=val_data, train=train, forward=forward, loss=loss)

    from varshift.comparison import variants_of

    if names is not None:
        variants_of([name for name, place in names.items() if place is None])
    device = check_device(device)
    with users_output(json):
        from varshift import compare as run_compare
        from varshift.cli._data import arguments_for, resolve_function, resolve_loader

        own = None
        if names is not None:
            own = {name: resolve_function(place, "--variants") or name for name, place in names.items()}
        with _progress(kept=store is not None) as progress:
            table = run_compare(
                _model(target, arguments, source, device),
                resolve_function(train, "--train"),
                resolve_loader(data, None, arguments=data_arguments),
                val_loader=resolve_loader(
                    val_data, None, "--val-data", arguments_for(val_data, data, data_arguments)
                )
                if val_data
                else None,
                variants=own,
                seeds=seeds,
                epochs=epochs,
                learning_rate=learning_rate,
                measure=measure,
                higher_is_better=True if higher else None,
                forward=resolve_function(forward, "--forward"),
                loss=resolve_function(loss, "--loss"),
                store=store,
                workers=workers,
                early_stop=early_stop,
                retry=retry,
                fresh=fresh,
                device=device,
                target=target,
                progress=progress,
            )
    write_json(table.to_json(), json)
    _print(table, to_error=json == "-")
    wanted = (row for row in table.variants if row.state in ("measured", "failed"))
    return int(any(len(row.seeds) < len(table.seeds) for row in wanted))


@dataclass(frozen=True, slots=True)
class TargetNetwork:
    """A target of the command line as a function that makes a network, which other processes can be sent.

    Attributes:
        target: The target.
        arguments: Keyword arguments for its callable, as pairs.
    """

    target: str
    arguments: tuple[tuple[str, Any], ...]

    def __call__(self) -> nn.Module:
        """Makes the network with the random numbers that torch was seeded for."""
        import torch

        from varshift.cli._models import resolve_model

        return resolve_model(self.target, dict(self.arguments), seed=torch.initial_seed() % 2**63)


def _model(target: str, arguments: dict[str, Any], weights: Weights, device: str | None) -> Any:
    """The network where it has weights of its own, else what makes it."""
    from torch import nn

    from varshift.cli._models import is_zoo
    from varshift.cli._network import load_network
    from varshift.cli._objects import resolve_object

    if weights.file is not None:
        return load_network(target, arguments, weights, device, seed=0)[0]
    load_network(target, arguments, weights, None, seed=0)  # whatever is wrong with it is said now
    if not is_zoo(target) and isinstance(network := resolve_object(target, "target"), nn.Module):
        return network
    return TargetNetwork(target, tuple(arguments.items()))


def _names(variants: list[str] | None) -> dict[str, str | None] | None:
    """Names of variants, with the place of the function for those of the user's own."""
    if not variants:
        return None
    names: dict[str, str | None] = {}
    for item in (part.strip() for text in variants for part in text.split(",")):
        name, equals, place = (part.strip() for part in item.partition("="))
        if not name or (equals and not place):
            raise VarshiftError(f"--variants: {item!r} must be a name, or NAME=MODULE:FUNCTION.")
        if name in names:
            raise VarshiftError(f"--variants: {name!r} comes twice.")
        names[name] = place or None
    return names


@contextlib.contextmanager
def _progress(*, kept: bool) -> Iterator[Progress]:
    """A bar where somebody sees it, a line for each tenth elsewhere; an interrupt says what is done."""
    from varshift.cli._progress import progress_bar

    last = (0, 0)
    tenth = -1

    with progress_bar() as bar:

        def follow(stage: str, done: int, total: int | None) -> None:
            nonlocal last, tenth
            last = (done, total or 0)
            if bar is not None:
                bar(stage, done, total)
            elif total and 10 * done // total != tenth:
                tenth = 10 * done // total
                typer.echo(f"{done} of {total} trainings are done; now {stage}", err=True)

        try:
            yield follow
        except KeyboardInterrupt:
            how = "the same command goes on" if kept else "without --store they are not kept"
            typer.echo(f"{last[0]} of {last[1]} trainings are done; {how}.", err=True)
            raise


def _print(table: Comparison, *, to_error: bool) -> None:
    from rich.table import Table

    from varshift.cli._console import wide_console
    from varshift.comparison import cells, headings, sentences, title_of

    console = wide_console(to_error=to_error)
    console.print(printable(title_of(table)), style="bold", markup=False)
    grid = Table(box=None, pad_edge=False)
    for number, heading in enumerate(headings(table)):
        grid.add_column(heading, justify="right" if number else "left", no_wrap=not number)
    for row in cells(table):
        grid.add_row(*map(printable, row))
    console.print()
    console.print(grid, markup=False)
    console.print()
    for sentence in sentences(table):
        console.print(printable(sentence), markup=False, soft_wrap=True)
