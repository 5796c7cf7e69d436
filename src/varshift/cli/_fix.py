"""``varshift fix``."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from varshift._errors import VarshiftError
from varshift.cli._options import (
    DEFAULT_BATCHES,
    OUTPUT,
    ArgOption,
    BatchesOption,
    DataArgOption,
    DataOption,
    DeviceOption,
    ForwardOption,
    FullOption,
    IgnoreOption,
    LossOption,
    PrefixOption,
    SeedOption,
    SelectOption,
    ShapeOption,
    StrictOption,
    TargetArgument,
    TrustOption,
    VerboseOption,
    WeightsKeyOption,
    WeightsOption,
)

if TYPE_CHECKING:
    from torch import nn

    from varshift import Cured
    from varshift.report import Report
    from varshift.rules import Finding

CURES = "The cures"


def fix(
    context: typer.Context,
    target: TargetArgument,
    arg: ArgOption = None,
    weights: WeightsOption = None,
    weights_key: WeightsKeyOption = None,
    prefix: PrefixOption = None,
    strict: StrictOption = False,
    trust: TrustOption = False,
    device: DeviceOption = None,
    data: DataOption = None,
    data_arg: DataArgOption = None,
    shape: ShapeOption = None,
    batches: BatchesOption = None,
    forward: ForwardOption = None,
    loss: LossOption = None,
    select: SelectOption = None,
    ignore: IgnoreOption = None,
    unsafe: Annotated[
        bool,
        typer.Option(
            "--unsafe",
            help="Allow cures after which the network has to be trained again; they come first, for they "
            "remove the cause.",
            rich_help_panel=CURES,
        ),
    ] = False,
    cure: Annotated[
        list[str] | None,
        typer.Option(
            "--cure",
            metavar="CODE[:KEY=VALUE,...]",
            help="Carry out this cure instead of what the findings ask for; may be repeated.",
            rich_help_panel=CURES,
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for the weights, the plan, both reports and `apply.py`, which builds the cured "
            "network.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the list of changes and write nothing.", rich_help_panel=OUTPUT),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Write over the files of an earlier fix in the folder.", rich_help_panel=OUTPUT
        ),
    ] = False,
    full: FullOption = False,
    seed: SeedOption = 0,
    verbose: VerboseOption = False,
) -> int:
    """Cure a network: for each finding the first cure that applies, proven and checked again.

    The network is checked, a copy of it is changed place by place, and the check runs again: a cure that does
    not cure is taken back. Without `--data` only what shows without data is cured. The folder gets the
    weights, the plan as data, both reports, and a file `apply.py` that builds the cured network from the
    original class.

    Exit status: 0 everything is cured, or there was nothing to cure; 1 something is left; 2 it could not be
    done.

    `varshift fix nets.py:build --weights best.pt --data nets.py:loader --out cured`

    `varshift fix timm:densenet121 --arg drop_rate=0.2 --cure remove-noise --dry-run`
    """
    from varshift.cli._arguments import (
        check_data_or_shape,
        check_device,
        parse_arguments,
        parse_cures,
        parse_shapes,
    )
    from varshift.cli._folder import check_folder
    from varshift.cli._sources import Weights, check_sources
    from varshift.rules import load_config

    config = load_config(Path.cwd())
    codes = config.selection(select or None, ignore or None)
    arguments, shapes, wishes = parse_arguments(arg), parse_shapes(shape), parse_cures(cure)
    if out is None and not dry_run:
        raise VarshiftError("--out: name a folder for the cured network, or look first with --dry-run.")
    if wishes and (select or ignore or unsafe):
        raise VarshiftError("--cure does what it names: --select, --ignore and --unsafe are for findings.")
    check_data_or_shape(data, shapes)
    if out is not None and not dry_run:
        check_folder(out, "--out", force=force)
    data_arguments = parse_arguments(data_arg, "--data-arg")
    if data_arguments and data is None:
        raise VarshiftError("--data-arg: there is no function to call: add --data.")
    source = Weights(weights, weights_key, prefix, strict, trust)
    check_sources(target, source, data=data, forward=forward, loss=loss)
    device = check_device(device)
    _check_cures(wishes)

    from varshift.cli._cured_folder import write_cured
    from varshift.cli._cured_lines import print_cured
    from varshift.cli._network import load_network

    network, checkpoint, names = load_network(target, arguments, source, device, seed=seed)
    cured = _cured(
        network,
        (data, batches or DEFAULT_BATCHES, data_arguments),
        target,
        shapes,
        forward,
        loss,
        wishes,
        select=list(codes) if select else None,
        ignore=_others(codes),
        intended=config.intended,
        unsafe=unsafe,
        device=device,
        seed=seed,
    )
    new = () if wishes else _new(cured, codes)
    same_check = [
        *_words(
            data=data,
            data_arg=data_arg,
            shape=shape,
            batches=batches,
            forward=forward,
            loss=loss,
            device=device,
        ),
        *_words(select=select, ignore=ignore, seed=seed or None),
    ]
    command = [
        *_words(arg=arg, weights=weights, weights_key=weights_key, prefix=prefix),
        *(["--trust"] if trust else []),
    ]
    cured.before = _named(cured.before, target, ["varshift", "check", target, *command, *same_check])
    written: list[Path] = []
    again = ["varshift", "check", f"{out}/apply.py:build", *same_check]
    if out is not None and not dry_run and cured.changes:
        cured.after = _named(cured.after, f"{out}/apply.py:build", again)
        written = write_cured(cured, out, target, arguments, seed, checkpoint, names)
    print_cured(cured, new, ("varshift", *context.obj.words), written, again, full=full)
    return 1 if cured.failures or new else 0


def _cured(
    network: nn.Module,
    data: tuple[str | None, int, dict[str, Any]],
    target: str,
    shapes: list[tuple[int, ...]] | None,
    forward: str | None,
    loss: str | None,
    wishes: dict[str, dict[str, Any]],
    **settings: Any,
) -> Cured:
    from varshift import fix as run_fix
    from varshift.cli._data import resolve_function, resolve_loader
    from varshift.cli._progress import progress_bar
    from varshift.cli._zoo import default_shape

    source, batches, data_arguments = data
    loader = resolve_loader(source, batches, arguments=data_arguments) if source else None
    if loader is None and shapes is None:
        shapes = [known] if (known := default_shape(target, network)) else None
    with progress_bar() as progress:
        return run_fix(
            network,
            loader=loader,
            shape=shapes,
            cures=wishes or None,
            max_batches=batches,
            forward=resolve_function(forward, "--forward"),
            loss=resolve_function(loss, "--loss"),
            progress=progress,
            **settings,
        )


def _check_cures(wishes: dict[str, dict[str, Any]]) -> None:
    """Makes sure, before long work, that the cures and their options are known."""
    from varshift.cli._objects import suggestion
    from varshift.fixes import REMEDIES, options_of

    for code, options in wishes.items():
        if code not in REMEDIES:
            known = sorted(REMEDIES)
            raise VarshiftError(
                f"--cure: {code!r} is no cure that can be carried out{suggestion(code, known)} "
                f"The cures are {', '.join(known)}."
            )
        try:
            options_of(REMEDIES[code], options)
        except VarshiftError as error:
            raise VarshiftError(f"--cure: {error}") from error


def _others(codes: tuple[str, ...]) -> list[str] | None:
    """The rules that are switched off."""
    from varshift.rules import all_rules

    return [rule.code for rule in all_rules() if rule.code not in codes] or None


def _new(cured: Cured, codes: tuple[str, ...]) -> tuple[Finding, ...]:
    """Findings of the check after that the check before does not have, of the rules that were asked for."""
    return tuple(finding for finding in cured.appeared if finding.code in codes)


def _words(**options: Any) -> list[str]:
    """The words of a command for options that have a value."""
    words: list[str] = []
    for name, value in options.items():
        for item in value if isinstance(value, list) else [] if value is None else [value]:
            words += [f"--{name.replace('_', '-')}", str(item)]
    return words


def _named(report: Report | None, target: str, command: list[str]) -> Report | None:
    """A report that calls the network by its target, and says how the check is repeated."""
    if report is None:
        return None
    model = dataclasses.replace(report.model, target=target)
    return dataclasses.replace(report, model=model, repeat=shlex.join(command))
