"""``varshift lab run``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from varshift_lab.verbs._lab_options import (
    STORE,
    RecipeArgument,
    ScaleName,
    ScaleOption,
    SeedsOption,
    StoreOption,
)

if TYPE_CHECKING:
    from varshift.runner import Assignment, Executor
    from varshift.store import Progress, Run, Store
    from varshift_lab.verbs._chosen import Chosen

WORKERS, OUTPUT = "Where it runs", "Output"


class ExecutorName(StrEnum):
    """Who starts workers."""

    local = "local"
    slurm = "slurm"
    ray = "ray"


class Precision(StrEnum):
    """Precision of the training."""

    full = "32-true"
    mixed = "bf16-mixed"


def run(
    recipe: RecipeArgument,
    scale: ScaleOption = ScaleName.smoke,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="NAME",
            help="A table or figure, or `claims`; may be repeated. All by default.",
            show_default=False,
        ),
    ] = None,
    seeds: SeedsOption = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try trials that failed again.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run all of it again, whatever the store holds.")
    ] = False,
    store: StoreOption = STORE,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for tables and figures; `results/RECIPE/SCALE` by default.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard", help="Write what trials record for TensorBoard too.", rich_help_panel=OUTPUT
        ),
    ] = False,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Keep the checkpoints of finished trials.", rich_help_panel=OUTPUT),
    ] = False,
    executor: Annotated[
        ExecutorName,
        typer.Option("--executor", help="Who starts the workers.", rich_help_panel=WORKERS),
    ] = ExecutorName.local,
    executor_arg: Annotated[
        list[str] | None,
        typer.Option(
            "--executor-arg",
            metavar="KEY=VALUE",
            help="Setting of the executor, may be repeated: `partition=gpu` for SLURM, `num_gpus=0.25` for "
            "Ray.",
            rich_help_panel=WORKERS,
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="Workers at most. By default one for each core of this machine, or one for each GPU.",
            rich_help_panel=WORKERS,
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            help="`cpu`, `cuda` (all GPUs in turn), `cuda:1`. Small runs may share a GPU: `--workers 4`.",
            rich_help_panel=WORKERS,
        ),
    ] = "cpu",
    precision: Annotated[
        Precision, typer.Option("--precision", help="Precision of the training.", rich_help_panel=WORKERS)
    ] = Precision.full,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the networks.", rich_help_panel=WORKERS)
    ] = False,
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="Threads of each worker.", rich_help_panel=WORKERS)
    ] = 1,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Where the data sets lie, unless where VARSHIFT_DATA says.",
            rich_help_panel=WORKERS,
            show_default=False,
        ),
    ] = None,
) -> int:
    """Run what a recipe needs and has not been run yet, then write its tables, figures and verdicts.

    Interrupted or killed, the same command goes on where it was; several may share one store.

    `varshift lab run variance-shift --scale smoke`

    `varshift lab run variance-shift --scale laptop --only table3 --workers 2`
    """
    from varshift.cli import check_device, parse_arguments
    from varshift.runner import Assignment, check_board
    from varshift.runner import executor as engine_of
    from varshift.store import Store
    from varshift_lab.verbs._chosen import choose
    from varshift_lab.verbs._output import default_folder, report_trouble, show, write
    from varshift_lab.verbs._places import places

    options = parse_arguments(executor_arg)
    chosen = choose(recipe, scale, only or (), seeds)
    if executor is ExecutorName.local:  # the devices of other machines cannot be tried from here
        check_device(device)
    if tensorboard:
        check_board()
    engine = engine_of(executor.value, options)
    with Store(store) as opened:
        keys = opened.add(chosen.recipe.name, chosen.scale, chosen.studies())
        if fresh:
            opened.discard(keys)
        if retry:
            opened.retry(keys)
        assignments = [
            Assignment(
                store=store.absolute(),
                keys=tuple(keys),
                device=place,
                data_folder=data.absolute() if data is not None else None,
                precision=precision.value,
                compile=compile,
                threads=threads,
                tensorboard=tensorboard,
                keep=keep,
            )
            for place in places(executor.value, device, workers, opened.progress(keys).open)
        ]
        _sweep(opened, engine, assignments, chosen)
        results = opened.results(chosen.trials())
        progress = opened.progress(keys)
        runs = opened.runs(keys)
    trouble = show(chosen, results)
    folder = out or default_folder(chosen)
    files, more = write(chosen, results, folder)
    typer.echo(f"Written to {folder}: {', '.join(file.name for file in files)}.")
    code = _end(progress, runs)
    return report_trouble(trouble + more) or code


def _sweep(store: Store, engine: Executor, assignments: list[Assignment], chosen: Chosen) -> None:
    """Runs what is left and says where it stood when it is interrupted."""
    from varshift.runner import run as run_all
    from varshift_lab.verbs._follow import Follower

    keys = assignments[0].keys
    if not store.progress(keys).open:
        return
    try:
        with Follower(f"{chosen.recipe.name} {chosen.scale}") as follow:
            run_all(store, engine, assignments, follow)
    except KeyboardInterrupt:
        progress = store.progress(keys)
        typer.echo(
            f"{progress.counts['done']} of {progress.total} trials are done; the same command goes on.",
            err=True,
        )
        raise


def by_reason(failed: list[Run]) -> dict[str, str]:
    """For each reason, the first trial that it stopped and how many more."""
    titles: dict[str, list[str]] = {}
    for run in failed:
        titles.setdefault(run.reason, []).append(run.title)
    return {
        reason: found[0] + (f" and {len(found) - 1} more" if len(found) > 1 else "")
        for reason, found in titles.items()
    }


def _end(progress: Progress, runs: list[Run]) -> int:
    """Says what failed, and returns the exit code."""
    failed = [run for run in runs if run.state == "failed"]
    for reason, alike in by_reason(failed).items():
        typer.echo(f"failed: {alike}: {reason}", err=True)
    if failed:
        typer.echo(f"{len(failed)} of {progress.total} trials failed; --retry tries them again.", err=True)
    return 1 if failed else 0
