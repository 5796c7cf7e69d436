"""``varshift recalibrate``."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from varshift._errors import VarshiftError, VarshiftWarning
from varshift._printable import printable
from varshift.cli._options import (
    DATA,
    OUTPUT,
    ArgOption,
    BatchesOption,
    DataArgOption,
    DataOption,
    DeviceOption,
    Estimator,
    EstimatorOption,
    ForwardOption,
    FullOption,
    LossOption,
    PrefixOption,
    SeedOption,
    ShapeOption,
    StrictOption,
    TargetArgument,
    TrustOption,
    VerboseOption,
    WeightsKeyOption,
    WeightsOption,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from varshift.probe import Recalibration

SHOWN = 30


def recalibrate(
    target: TargetArgument,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Where the new state dict goes: .safetensors, .pt or .pth, laid out as in --weights.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ],
    data: DataOption = None,
    data_arg: DataArgOption = None,
    shape: ShapeOption = None,
    arg: ArgOption = None,
    weights: WeightsOption = None,
    weights_key: WeightsKeyOption = None,
    prefix: PrefixOption = None,
    strict: StrictOption = False,
    trust: TrustOption = False,
    device: DeviceOption = None,
    batches: BatchesOption = None,
    forward: ForwardOption = None,
    noise: Annotated[
        bool,
        typer.Option(
            "--noise",
            help="Keep the noise on: the statistics that training would produce.",
            rich_help_panel=DATA,
        ),
    ] = False,
    estimator: EstimatorOption = Estimator.pooled,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            help="Stop as soon as the statistics of every norm are this certain (0.01: one per cent).",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ] = None,
    loss: LossOption = None,
    frozen: Annotated[
        bool,
        typer.Option(
            "--frozen", help="Re-estimate the statistics of frozen norms, too.", rich_help_panel=DATA
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Write over an existing file, and write although the loss got worse.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    full: FullOption = False,
    seed: SeedOption = 0,
    verbose: VerboseOption = False,
) -> int:
    """Give a network statistics that fit it as deployed: noise off, pooled over the data.

    The weights stay as they are; only running means and variances change. Without data these are predicted,
    which takes the shape of an input: --shape, unless the network states it.

    With targets in the data, the loss before and after is measured on batches that are held back from the
    statistics. Where it got worse beyond its error nothing is written, unless --force says so.

    `varshift recalibrate nets.py:build --weights best.pt --data nets.py:loader --out fixed.pt`
    """
    from varshift.cli._arguments import check_data_or_shape, check_device, parse_arguments, parse_shapes

    arguments, shapes = parse_arguments(arg), parse_shapes(shape)
    asked = noise or frozen or estimator != Estimator.pooled
    if data is None and (asked or any(value is not None for value in (tolerance, batches, loss))):
        raise VarshiftError(
            "--noise, --estimator, --tolerance, --batches, --loss and --frozen need data: add --data."
        )
    check_data_or_shape(data, shapes)
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance > 0):
        raise VarshiftError(f"--tolerance: {tolerance} is a relative error and must be above 0.")

    from varshift.cli._sources import Weights, check_sources

    data_arguments = parse_arguments(data_arg, "--data-arg")
    if data_arguments and data is None:
        raise VarshiftError("--data-arg: there is no function to call: add --data.")
    source = Weights(weights, weights_key, prefix, strict, trust)
    check_sources(target, source, data=data, forward=forward, loss=loss)

    from varshift.cli._weights import check_output, state_writer, updated_content, write_weights

    check_output(out, force=force)
    device = check_device(device)

    from varshift import recalibrate as run_recalibrate
    from varshift.cli._data import resolve_function, resolve_loader
    from varshift.cli._network import load_network
    from varshift.cli._progress import progress_bar

    network, checkpoint, names = load_network(target, arguments, source, device, seed=seed)
    before = _buffers(network)
    call = resolve_function(forward, "--forward")
    if data is None and shapes is None:
        shapes = [_stated_shape(target, network, call)]
    with progress_bar() as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", VarshiftWarning)  # the same is printed below
        handle = run_recalibrate(
            network,
            None if data is None else resolve_loader(data, batches, arguments=data_arguments),
            shape=shapes,
            noise=noise,
            estimator=estimator.value,
            max_batches=batches,
            tolerance=tolerance,
            forward=call,
            loss=resolve_function(loss, "--loss"),
            frozen=frozen,
            progress=progress,
        )
    _print(handle, full=full)
    if not any(layer.updated for layer in handle.layers):
        what = (
            "no norm got new statistics"
            if handle.layers
            else "the network has no norm with running statistics"
        )
        raise VarshiftError(f"{what}: nothing was written.")
    if handle.effect is not None and handle.effect.worse and not force:
        raise VarshiftError(
            f"the network got worse: {handle.effect}. Nothing was written; --force writes it nevertheless. "
            "The weights may have been trained on the stored statistics, or these data are not like those of "
            "training."
        )
    if checkpoint is None:
        writer = state_writer(network.state_dict(), out.suffix)
    else:
        writer = updated_content(checkpoint, names, _changed(before, _buffers(network)), out.suffix)
    write_weights(out, writer)
    typer.echo(f"Written to {out}.")
    return 0


def _stated_shape(target: str, network: nn.Module, forward: Any) -> tuple[int, ...]:
    """The shape of an input as the zoo or the network states it."""
    from varshift import DataError
    from varshift.cli._zoo import default_shape
    from varshift.moments import stated_shape

    try:
        return default_shape(target, network) or stated_shape(network, forward)
    except DataError as error:
        raise VarshiftError(
            "neither data nor a shape were given, and the network does not state the size of its input: "
            "add --shape or --data."
        ) from error


def _buffers(network: nn.Module) -> dict[str, Tensor]:
    """Copies of everything in the state dict that is not a parameter."""
    import torch

    parameters = dict(network.named_parameters(remove_duplicate=False))
    return {
        key: value.detach().clone()
        for key, value in network.state_dict().items()
        if key not in parameters and isinstance(value, torch.Tensor)
    }


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in after.items() if key not in before or not value.equal(before[key])}


def _print(handle: Recalibration, *, full: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from varshift.cli._console import wide_console
    from varshift.report import counted, figure, module_name, ratio, shortened

    console = wide_console()
    updated = [layer for layer in handle.layers if layer.updated]
    shown = updated if full else sorted(updated, key=_moved, reverse=True)[:SHOWN]
    shown = [layer for layer in updated if layer in shown]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("norm", "mean", "→", "variance", "→", "ratio"):
        table.add_column(title, justify="left" if title == "norm" else "right", no_wrap=True)
    for layer in shown:
        table.add_row(
            Text(shortened(printable(module_name(layer.name)), max(16, console.width - 52)), "cyan"),
            figure(layer.mean_before),
            figure(layer.mean_after),
            figure(layer.var_before),
            figure(layer.var_after),
            ratio(_ratio(layer)),
        )
    source = "without data"
    if handle.batches:
        source = f"from {counted(handle.samples, 'sample')} in {counted(handle.batches, 'batch', 'batches')}"
    console.print(
        f"{len(updated)} of {counted(len(handle.layers), 'norm')} recalibrated {source}{_tolerance(handle)}. "
        "Channel means:",
        markup=False,
    )
    if shown:
        console.print(table)
    if len(shown) < len(updated):
        console.print(f"The {len(shown)} that changed most; --full shows all {len(updated)}.", style="dim")
    if handle.effect is not None:
        effect = str(handle.effect)
        style = "red" if handle.effect.worse else "green" if handle.effect.delta < 0 else ""
        console.print(Text(f"{effect[0].upper()}{effect[1:]}.", style), soft_wrap=True)
    if handle.leverage is not None:
        words, inflation = handle.leverage.words, handle.leverage.inflation
        line = (
            f"{words[0].upper()}{words[1:]} dominates the statistics ({inflation:.3g} times the variance of "
            "the other batches): look at it, and recalibrate without it."
        )
        console.print(Text(line, "yellow"), soft_wrap=True)
    for layer in handle.layers:
        if not layer.updated:
            line = f"{module_name(layer.name)} keeps its statistics: {layer.reason}."
            console.print(Text(printable(line), "yellow"), soft_wrap=True)


def _tolerance(handle: Recalibration) -> str:
    if handle.converged is None:
        return ""
    return ", within the tolerance" if handle.converged else ", the tolerance was not reached"


def _ratio(layer: Any) -> float | None:
    return layer.var_after / layer.var_before if layer.var_before else None


def _moved(layer: Any) -> float:
    value = _ratio(layer)
    if value is None or not math.isfinite(value) or value <= 0:
        return math.inf
    return abs(math.log(value))
