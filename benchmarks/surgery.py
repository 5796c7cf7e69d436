"""Networks of other libraries after surgery: can they still do what they could before?

Run by itself: ``python benchmarks/surgery.py``. In every network all noise is replaced by uniform noise, and,
in the second column, removed. Then it goes through a battery; what fails is tried on the unedited network,
too. Rows go to ``benchmarks/.surgery.jsonl`` (``--rows``), and what has one is not tried again. Libraries
that are not installed are skipped and named.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import varshift as vs
from _alone import append, row_of
from _surgery_battery import CELLS, Trial, compiled, judged
from _surgery_ranks import trained
from _survey_rows import settled
from _surveyed import installed, networks
from _surveyed_network import Network
from _timing import table, write

HERE = Path(__file__).parent
SECONDS = 600
SAMPLES = 4
CURES: dict[str, Any] = {"uniform": {"swap-noise": {"to": "uniform"}}, "removed": ["remove-noise"]}
PARTS = ("battery", "processes", "compile")
COLUMNS = (*CELLS, "two processes", "compile")
CHOSEN = (
    *("torch/HandBlock", "torch/LiteralRate", "torch/HandMask", "torch/Helper", "torch/Shared"),
    *("torch/TransformerEncoder", "torch/TransformerDecoder"),
    *("transformers/BERT", "transformers/BERT, eager attention", "transformers/DistilBERT"),
    *("transformers/ALBERT", "transformers/BART", "transformers/BART, eager attention", "transformers/OPT"),
    *("transformers/GPT-2", "transformers/GPT-2, eager attention", "transformers/Llama, eager attention"),
    *("transformers/Bloom", "transformers/T5", "transformers/ViT", "transformers/BEiT"),
    *("transformers/ConvNeXt", "transformers/SegFormer", "transformers/MobileViT"),
    *("transformers/Wav2Vec2-Conformer", "transformers/PatchTST", "transformers/LeViT"),
    *("monai/UNet", "monai/SegResNet", "monai/EfficientNet", "monai/ViT", "monai/BasicUNet"),
    *("torchvision/squeezenet1_0", "torchvision/alexnet", "torchvision/mobilenet_v3_small"),
    *("torchvision/efficientnet_b0", "torchvision/vgg11_bn", "torchvision/googlenet"),
    *("torchvision/densenet121", "torchvision/deeplabv3_mobilenet_v3_large", "torchvision/convnext_tiny"),
    *("torchvision/swin_t", "torchvision/swin_v2_t", "torchvision/vit_b_16"),
    *("timm/convnext", "timm/efficientnet", "timm/vision_transformer", "timm/nfnet", "timm/mambaout"),
    *("timm/byobnet", "timm/resnet", "timm/starnet", "timm/maxxvit", "timm/vision_transformer_relpos"),
    *("timm/mobilenetv3", "timm/vovnet", "timm/regnet", "timm/cspnext", "timm/fasternet"),
    *("timm/inception_next", "timm/senet", "timm/sknet", "timm/resnetv2", "timm/edgenext", "timm/cspnet"),
)


def battery(network: Network, column: str) -> dict[str, Any]:
    """Surgery, and all of the battery that one process can do without a compiler."""
    built, batches, size = settled(network, SAMPLES)
    original, inputs = built.model, batches[0]
    example = inputs if len(inputs) > 1 else inputs[0]
    cured = vs.fix(original, example_inputs=example, cures=CURES[column], recheck=False)
    row: dict[str, Any] = {
        "model": built.title,
        "size": size,
        "torch": torch.__version__,
        "methods": dict(Counter(change.method for change in cured.changes)),
        "failures": [str(failure) for failure in cured.failures],
        "notes": list(cured.notes),
        "plan": cured.plan.to_json(),
    }
    if not cured.changes:
        return row
    edited = Trial(cured.model, original, inputs)
    unedited = Trial(original, original, inputs)
    row["cells"] = {name: judged(cell, edited, lambda: unedited) for name, cell in CELLS.items()}
    return row


def compile_network(network: Network, plan: str) -> dict[str, Any]:
    """The compiler, on the network that a plan makes."""
    built, batches, _ = settled(network, SAMPLES)
    edited = vs.apply_plan(built.model, plan).model
    trial = Trial(edited, built.model, batches[0])
    unedited = Trial(built.model, built.model, batches[0])
    return {"cells": {"compile": judged(compiled, trial, lambda: unedited)}}


def load(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The rows of a file by network, column and part; a later one replaces an earlier one."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["name"], row["column"], row["part"]): row for row in rows}


def operate(arguments: argparse.Namespace) -> None:
    """Tries every network that has no row yet, the quick parts first."""
    rows = load(arguments.rows)
    torch.set_num_threads(1)  # a process that has woken other threads must not fork
    vs.check(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), shape=(2,))  # imports what it imports late
    chosen = [network for network in networks() if network.name in CHOSEN and arguments.only in network.name]
    chosen = [network for network in chosen if installed(network.package)]

    def note(key: tuple[str, str, str], seconds: float, result: dict[str, Any]) -> None:
        name, column, part = key
        row = {"column": column, "part": part, "seconds": round(seconds, 1), **result, "name": name}
        rows[key] = row
        append(arguments.rows, row)
        verdicts = {cell: verdict for cell, verdict in row.get("cells", {}).items() if verdict != ["holds"]}
        print(*key, row["seconds"], row.get("died", verdicts or "holds"), flush=True)

    def waiting(part: str) -> Iterator[tuple[Network, str]]:
        for column in arguments.columns:
            for network in chosen:
                edited = rows.get((network.name, column, "battery"), {}).get("cells")
                if (network.name, column, part) not in rows and (part == "battery" or edited):
                    yield network, column

    for part, work in (("battery", battery), ("compile", compile_network)):
        for network, column in waiting(part) if part in arguments.parts else ():
            argument = column if part == "battery" else rows[network.name, column, "battery"]["plan"]
            started = time.perf_counter()
            result = row_of(network.name, functools.partial(work, network, argument), SECONDS)
            note((network.name, column, part), time.perf_counter() - started, result)
        if part == "battery" and "processes" in arguments.parts:
            keys = [(network.name, column, "processes") for network, column in waiting("processes")]
            for key, seconds, verdict in two_processes(keys, rows):
                note(key, seconds, {"cells": {"two processes": verdict}})


def two_processes(
    keys: list[tuple[str, str, str]], rows: dict[tuple[str, str, str], dict[str, Any]]
) -> Iterator[tuple[tuple[str, str, str], float, list[str]]]:
    """Trains networks in two processes; where that fails, the unedited network, too."""
    while keys:
        tasks = [(name, rows[name, column, "battery"]["plan"]) for name, column, _ in keys]
        with tempfile.TemporaryDirectory() as folder:
            for reason, seconds in trained(tasks, SAMPLES, Path(folder), SECONDS):
                key = keys.pop(0)
                if reason is None:
                    yield key, seconds, ["holds"]
                    continue
                with tempfile.TemporaryDirectory() as other:
                    ((before, _),) = trained([(key[0], None)], SAMPLES, Path(other), SECONDS)
                yield key, seconds, ["fails", reason] if before is None else ["unedited", before]


def cells_of(
    rows: dict[tuple[str, str, str], dict[str, Any]], name: str, column: str
) -> dict[str, list[str]]:
    """All cells of a network and a column."""
    cells: dict[str, list[str]] = {}
    for part in PARTS:
        row = rows.get((name, column, part), {})
        cells.update(row.get("cells", {}))
        if "died" in row:
            names = {"battery": tuple(CELLS), "processes": ("two processes",), "compile": ("compile",)}[part]
            cells.update({cell: ["fails", row["died"]] for cell in names})
    return cells


def page(rows: dict[tuple[str, str, str], dict[str, Any]]) -> str:
    """The table as Markdown."""
    body, reasons, counts = [], [], Counter()
    totals: Counter[str] = Counter()
    for name in CHOSEN:
        for column in CURES:
            row = rows.get((name, column, "battery"))
            if row is None:
                continue
            cells = cells_of(rows, name, column)
            methods = row.get("methods", {})
            totals.update(methods)
            text = ", ".join(f"{methods[method]} {method}" for method in sorted(methods)) or "none"
            line = [name, column, text, str(len(row.get("notes", ())) + len(row.get("failures", ())) or "")]
            for cell in COLUMNS:
                verdict = cells.get(cell, ["not tried"])
                counts[verdict[0]] += 1
                line.append({"unedited": "unedited neither"}.get(verdict[0], verdict[0]))
                if len(verdict) > 1:
                    reasons.append(f"* {name}, {column}, {cell}: {verdict[0]}: {_plain(verdict[1])}")
            reasons += [f"* {name}, {column}: note: {_plain(note)}" for note in row.get("notes", ())]
            reasons += [f"* {name}, {column}: {_plain(text)}" for text in row.get("failures", ())]
            body.append(line)
    operated = Counter(line[1] for line in body)
    missing = [name for name in CHOSEN if all((name, column, "battery") not in rows for column in CURES)]
    text = (
        f"All noise replaced by uniform noise of equal variance in {operated['uniform']} networks, and "
        f"removed in {operated['removed']} (`python benchmarks/surgery.py`); random weights, rates of .1, "
        "small sizes. Places changed by "
        f"method: {', '.join(f'{count} {method}' for method, count in sorted(totals.items()))}. Cells: "
        f"{', '.join(f'{count} {verdict}' for verdict, count in sorted(counts.items()))}. "
        '"unedited neither": the network could not do it before the edit, for the reason below.\n\n'
        "* keys and loading: `state_dict` keys and parameter names in the same order; strict loading both "
        "ways\n"
        "* deepcopy, pickle, torch.save: the copy, captured, has the noise of the edited network, in the "
        "same operations\n"
        "* eval: outputs equal those before to 1e-5\n"
        "* export: `torch.export.export` in training and in evaluation; the program's outputs in "
        "evaluation to 1e-5\n"
        "* checkpoint: gradients under `torch.utils.checkpoint` equal to those without, same seed, to 1e-6 "
        "of the largest\n"
        "* two steps: finite losses, changed weights, and gradients at the same weights as before\n"
        "* two processes: `DistributedDataParallel` with gloo, different batches: equal weights after two "
        "steps\n"
        "* compile: `torch.compile(fullgraph=True)` with inductor: one training step, and outputs in "
        "evaluation to 1e-3"
    )
    if missing:
        text += f"\n\nNot tried: {', '.join(missing)}."
    header = ["network", "noise", "places by method", "notes", *COLUMNS]
    return f"{text}\n\n{table(header, body)}\n\n" + "\n".join(reasons)


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ").replace(str(Path(torch.__file__).parents[1]), "")[:200]


def main() -> None:
    """Operates, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=HERE / ".surgery.jsonl", help="file of rows")
    parser.add_argument("--only", default="", help="networks whose name contains this; writes no page")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="what is tried")
    parser.add_argument("--columns", nargs="+", default=tuple(CURES), choices=CURES, help="which cures")
    parser.add_argument("--page", action="store_true", help="tries nothing, writes the page of the rows")
    arguments = parser.parse_args()
    if not arguments.page:
        operate(arguments)
    if not arguments.only:
        write("surgery", "Networks after surgery", page(load(arguments.rows)))


if __name__ == "__main__":
    main()
