"""Options that several verbs share, with their help."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

MODEL, DATA, OUTPUT, RULES = "The network", "The data", "Output", "Rules"
DEFAULT_BATCHES = 16  # of a check, which a fix runs too


class Estimator(StrEnum):
    """How statistics are put together."""

    pooled = "pooled"
    ema = "ema"


class FailOn(StrEnum):
    """The mildest severity that makes a check fail."""

    error = "error"
    warning = "warning"
    advice = "advice"


class OutputFormat(StrEnum):
    """What a check writes to standard output."""

    text = "text"
    concise = "concise"
    json = "json"
    github = "github"
    gitlab = "gitlab"
    sarif = "sarif"
    junit = "junit"
    md = "md"


def _set_verbose(context: typer.Context, value: bool) -> bool:
    if value and context.obj is not None:
        context.obj.verbose = True
    return value


TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="The network: `package.module:callable`, `path/to/file.py:callable`, `timm:NAME` or "
        "`torchvision:NAME`. The callable may be a function or class that makes the network, or the network.",
        show_default=False,
    ),
]
ArgOption = Annotated[
    list[str] | None,
    typer.Option(
        "--arg",
        metavar="KEY=VALUE",
        help="Argument for the callable, may be repeated. Values are read as Python literals, else as text.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="State dict to load: .safetensors, a torch file, or a folder of Hugging Face with one.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
WeightsKeyOption = Annotated[
    str | None,
    typer.Option(
        "--weights-key",
        metavar="KEY",
        help="Where in the file the state dict lies, when there are several (`state_dict_ema`).",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
PrefixOption = Annotated[
    str | None,
    typer.Option(
        "--prefix",
        metavar="PREFIX",
        help="Take only the keys of the file that begin with it (`student`); `module.`, `model.` and "
        "`_orig_mod.` are found without.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Refuse a file with keys that the network does not have; they are ignored otherwise.",
        rich_help_panel=MODEL,
    ),
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Read a file with pickled objects all the same, though that can run any code.",
        rich_help_panel=MODEL,
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Where to run: `cpu`, `cuda`, `cuda:1`, `mps`. By default where the network is.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
_DATA_OPTION = typer.Option(
    "--data",
    metavar="MODULE:NAME",
    help="Batches as the network is trained on: a DataLoader, a list of batches, or a function that returns "
    "one.",
    rich_help_panel=DATA,
    show_default=False,
)
DataOption = Annotated[str | None, _DATA_OPTION]
RequiredDataOption = Annotated[str, _DATA_OPTION]
DataArgOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data-arg",
        metavar="KEY=VALUE",
        help="Argument for the function of `--data`, may be repeated.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="C,H,W",
        help="Without data: shape of an input without the batch dimension, once for each input.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
ForwardOption = Annotated[
    str | None,
    typer.Option(
        "--forward",
        metavar="MODULE:FUNCTION",
        help="Function of model and batch that returns the outputs, for batches that are neither (inputs, "
        "targets) nor named inputs.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
LossOption = Annotated[
    str | None,
    typer.Option(
        "--loss",
        metavar="MODULE:FUNCTION",
        help="Function of outputs and targets. By default cross-entropy for class indices, squared error "
        "for numbers, the model's own loss.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
BatchesOption = Annotated[
    int | None,
    typer.Option(
        "--batches",
        metavar="N",
        min=1,
        help=f"Use at most N batches; by default {DEFAULT_BATCHES}, and all of them in recalibrate.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
EstimatorOption = Annotated[
    Estimator,
    typer.Option(
        "--estimator",
        help="How statistics are put together: `pooled` over all samples, or `ema`, a moving average.",
        rich_help_panel=DATA,
    ),
]
SelectOption = Annotated[
    list[str] | None,
    typer.Option(
        "--select",
        metavar="CODES",
        help="Rules to run: codes or prefixes, separated by commas (`VS1,VS207`).",
        rich_help_panel=RULES,
        show_default=False,
    ),
]
IgnoreOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore", metavar="CODES", help="Rules not to run.", rich_help_panel=RULES, show_default=False
    ),
]
JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the result as JSON too; `-` writes JSON alone to standard output.",
        rich_help_panel=OUTPUT,
        show_default=False,
    ),
]
FullOption = Annotated[
    bool, typer.Option("--full", help="Show every entry of shortened lists.", rich_help_panel=OUTPUT)
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed for random weights, inputs and noise.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show tracebacks of errors.", callback=_set_verbose)
]
