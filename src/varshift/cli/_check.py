"""``varshift check``."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from varshift._errors import VarshiftError
from varshift.cli._options import (
    DATA,
    DEFAULT_BATCHES,
    MODEL,
    OUTPUT,
    RULES,
    ArgOption,
    BatchesOption,
    DataArgOption,
    DataOption,
    DeviceOption,
    Estimator,
    EstimatorOption,
    FailOn,
    ForwardOption,
    FullOption,
    IgnoreOption,
    JsonOption,
    LossOption,
    OutputFormat,
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
    from varshift.cli._sources import Weights
    from varshift.report import Report


def check(
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
    deploy: Annotated[
        str | None,
        typer.Option(
            "--deploy",
            metavar="MODULE:NAME",
            help="Batches as deployment prepares them, where that differs from `--data`: what the other "
            "transforms cost is measured too.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ] = None,
    step: Annotated[
        str | None,
        typer.Option(
            "--step",
            metavar="MODULE:FUNCTION",
            help="One training step, a function of model and batch with its optimiser inside: two are run on "
            "copies.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ] = None,
    reference_weights: Annotated[
        list[Path] | None,
        typer.Option(
            "--reference-weights",
            metavar="FILE",
            help="State dict that the weights come from, of the same network: the source of a moving "
            "average, a client. Several times for several.",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None,
    shape: ShapeOption = None,
    batches: BatchesOption = None,
    forward: ForwardOption = None,
    loss: LossOption = None,
    estimator: EstimatorOption = Estimator.pooled,
    select: SelectOption = None,
    ignore: IgnoreOption = None,
    fail_on: Annotated[
        FailOn | None,
        typer.Option(
            "--fail-on",
            help="The mildest finding that makes the exit status 1; by default `warning`.",
            rich_help_panel=RULES,
            show_default=False,
        ),
    ] = None,
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="Exit with 0 even with findings.", rich_help_panel=RULES)
    ] = False,
    json: JsonOption = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Write the report too, in the format that the ending names: .json, .html, .txt, .svg, .md, "
            ".sarif, or .xml for JUnit.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    output_format: Annotated[
        OutputFormat,
        typer.Option(
            "--output-format",
            help="What is written to standard output; all but `text` stand alone there.",
            rich_help_panel=OUTPUT,
        ),
    ] = OutputFormat.text,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            metavar="FILE",
            help="An earlier report as JSON: only what it has not found is shown and makes the check fail. "
            "Files of JSON keep all of it.",
            rich_help_panel=RULES,
            show_default=False,
        ),
    ] = None,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", help="Print nothing: files and exit status say it all.", rich_help_panel=OUTPUT
        ),
    ] = False,
    full: FullOption = False,
    seed: SeedOption = 0,
    verbose: VerboseOption = False,
) -> int:
    """Find out why a network is good in `train()` and bad in `eval()`.

    With `--data` every norm is measured and the gap between training and deployment is split into its
    causes. Without data its noise is traced to its norms, and the shift is predicted. Only what the
    selected rules need is run.

    `varshift check nets.py:build --weights best.pt --data nets.py:loader`

    `varshift check timm:densenet121 --arg proj_drop_rate=0.2 --shape 3,224,224`
    """
    from varshift.cli._arguments import check_device, parse_arguments, parse_shapes
    from varshift.cli._delivery import deliver, only_new, save
    from varshift.cli._json import check_json, write_json
    from varshift.cli._sources import Weights, check_sources, weights_file
    from varshift.report import Report, check_writable, format_for
    from varshift.rules import SEVERITIES, load_config

    # Whatever can be wrong with the command is found before anything is imported or measured.
    config = load_config(Path.cwd())
    codes = config.selection(select or None, ignore or None)
    arguments, shapes = parse_arguments(arg), parse_shapes(shape)
    check_json(json)
    if output is not None:
        format_for(output)
        check_writable(output)
    formatted = output_format is not OutputFormat.text
    if formatted + quiet + (json == "-") > 1:
        raise VarshiftError(
            "--output-format, `--json -` and --quiet exclude one another: each decides alone what standard "
            "output has."
        )
    earlier = Report.from_json(baseline) if baseline is not None else None
    if deploy is not None and data is None:
        raise VarshiftError("--deploy is compared with the training data: add --data.")
    if step is not None and data is None:
        raise VarshiftError("--step needs batches to run on: add --data.")
    data_arguments = parse_arguments(data_arg, "--data-arg")
    if data_arguments and data is None:
        raise VarshiftError("--data-arg: there is no function to call: add --data.")
    source = Weights(weights, weights_key, prefix, strict, trust)
    check_sources(target, source, data=data, deploy=deploy, step=step, forward=forward, loss=loss)
    references = [weights_file(path, "--reference-weights") for path in reference_weights or ()]
    device = check_device(device)

    report = _measured(
        target,
        arguments,
        source,
        (data, deploy),
        shapes,
        alone=formatted or json == "-",
        batches=batches or DEFAULT_BATCHES,
        forward=forward,
        loss=loss,
        step=step,
        reference_weights=references,
        data_arguments=data_arguments,
        device=device,
        estimator=estimator.value,
        select=codes,
        intended=config.intended,
        seed=seed,
    )
    report = dataclasses.replace(report, repeat=shlex.join(("varshift", *context.obj.words)))
    write_json(report.to_json(), json)
    severity = fail_on.value if fail_on else config.fail_on
    shown = only_new(report, earlier, str(baseline))
    if output is not None:
        save(report, shown, output, fail_on=severity)
    if not quiet:
        whole = report if output_format is OutputFormat.json else shown
        deliver(whole, output_format.value, full=full, to_error=json == "-", fail_on=severity)
    fails = shown.worst is not None and SEVERITIES.index(shown.worst) <= SEVERITIES.index(severity)
    return 1 if fails and not (exit_zero or config.exit_zero) else 0


def _measured(
    target: str,
    arguments: dict[str, Any],
    weights: Weights,
    sources: tuple[str | None, str | None],
    shapes: list[tuple[int, ...]] | None,
    *,
    alone: bool,
    forward: str | None,
    loss: str | None,
    step: str | None,
    reference_weights: list[Path],
    data_arguments: dict[str, Any],
    batches: int,
    **settings: Any,
) -> Report:
    from varshift.cli._json import users_output

    with users_output("-" if alone else None):
        from varshift import check as run_check
        from varshift.cli._data import arguments_for, resolve_function, resolve_loader
        from varshift.cli._network import load_network, with_weights
        from varshift.cli._progress import progress_bar

        network, _, _ = load_network(target, arguments, weights, settings["device"], seed=settings["seed"])
        loader, deploy = (
            resolve_loader(text, batches, option, arguments_for(text, sources[0], data_arguments))
            if text
            else None
            for text, option in zip(sources, ("--data", "--deploy"), strict=True)
        )
        if loader is None and shapes is None:
            from varshift.cli._zoo import default_shape

            shapes = [known] if (known := default_shape(target, network)) else None
        references = [
            with_weights(network, dataclasses.replace(weights, file=path, key=None))
            for path in reference_weights
        ]
        with progress_bar() as progress:
            return run_check(
                network,
                loader,
                deploy=deploy,
                reference=references or None,
                step=resolve_function(step, "--step"),
                shape=shapes,
                max_batches=batches,
                forward=resolve_function(forward, "--forward"),
                loss=resolve_function(loss, "--loss"),
                target=target,
                progress=progress,
                **settings,
            )
