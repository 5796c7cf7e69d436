"""What each cure does to the shift, the loss and the accuracy of sick networks, over seeds."""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import varshift as vs
from _networks import folder
from _timing import table, write
from varshift.fixes import REMEDIES
from varshift_lab._trainer import TrainingSettings, train
from varshift_lab.data import cifar10, digits, tensor_loader
from varshift_lab.networks import preresnet
from varshift_lab.training import evaluate

STORE = Path(__file__).parent / ".trained"
NOTHING = "nothing"
CURES: dict[str, dict[str, Any]] = {
    NOTHING: {},
    "recalibrate": {},
    "remove-noise": {},
    "lower-rate": {},
    "swap-noise to uniform": {"to": "uniform"},
    "move-noise to the head": {"to": "head"},
    "swap-norm to group norm": {"to": "group_norm"},
    "swap-norm to filter response": {"to": "filter_response_norm"},
    "swap-norm to batch renorm": {"to": "batch_renorm"},
    "batch-free-norm": {},
    "insert-components": {},
}


@dataclass(frozen=True)
class Case:
    """A kind of sick network, the data, and how long it is trained at first and again."""

    make: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]
    epochs: int
    again: int


def digit_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Handwritten digits to train on and to test with."""
    data = digits()
    return data.train_images, data.train_labels, data.test_images, data.test_labels


def cifar_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """2,560 images of CIFAR-10 to train on, 2,000 to test with."""
    data, test = cifar10(folder(), batches=1), cifar10(folder(), train=False)
    return data.normalised()[:2560], data.labels[:2560], test.normalised()[:2000], test.labels[:2000]


CASES = {
    "digits, PreResNet-20, dropout .5 before norms": Case(
        lambda: preresnet(20, 10, dropout=0.5, placement="a", in_channels=1, width=8), digit_data, 5, 2
    ),
    "CIFAR-10 (2,560 images), PreResNet-20, dropout .5 before norms": Case(
        lambda: preresnet(20, 10, dropout=0.5, placement="a", width=8), cifar_data, 4, 1
    ),
}


def measure(case: Case, seed: int, cures: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One record for each cure of one trained network."""
    images, labels, test_images, test_labels = case.data()
    torch.manual_seed(seed)
    network = case.make()

    def loader() -> Any:
        return tensor_loader(images, labels, 64, shuffle=True, drop_last=True, seed=seed)

    def settings(epochs: int) -> TrainingSettings:
        return TrainingSettings(epochs=epochs, learning_rate=0.1, weight_decay=5e-4, seed=seed)

    def scored(net: nn.Module) -> tuple[float, float]:
        result = evaluate(net, tensor_loader(test_images, test_labels, 256))
        return result.loss, result.accuracy

    train(network, loader(), settings(case.epochs))
    before = vs.check(network, loader(), max_batches=4)
    for name, options in cures.items():
        model, report, changes = copy.deepcopy(network), before, 0
        record: dict[str, Any] = {"cure": name, "before": scored(network), "shift": worst(before)}
        if name != NOTHING:
            code = name.partition(" ")[0]
            try:
                cured = vs.fix(network, before, loader=loader(), cures={code: options}, max_batches=4)
            except Exception as error:  # a cure that breaks is a row of the table
                yield {**record, "failed": f"{type(error).__name__}: {error}"}
                continue
            if cured.failures:
                yield {**record, "failed": "; ".join(map(str, cured.failures))}
                continue
            model, report, changes = cured.model, cured.after or before, len(cured.changes)
        record |= {"changes": changes, "cured": scored(model), "shift_after": worst(report)}
        code = name.partition(" ")[0]
        if name == NOTHING or REMEDIES[code].safety == "unsafe" or REMEDIES[code].restates:
            model = copy.deepcopy(model)
            train(model, loader(), settings(case.again))
            record |= {"again": scored(model), "shift_again": worst(vs.check(model, loader(), max_batches=4))}
        yield record


def worst(report: vs.Report) -> float | None:
    """The largest shift of a norm."""
    return max((layer.shift for layer in report.layers if layer.shift is not None), default=None)


def stored(path: Path) -> list[dict[str, Any]]:
    """The records so far; a last line that was cut short is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def page(records: list[dict[str, Any]]) -> str:
    """The tables, one for each kind of network."""
    header = ["cure", "seeds", "worst shift", "after", "loss", "after", "accuracy", "after"]
    header += ["trained again: shift", "loss", "accuracy"]
    sections = []
    for case in CASES:
        rows = []
        for cure in CURES:
            own = [record for record in records if (record["case"], record["cure"]) == (case, cure)]
            good = [record for record in own if "failed" not in record]
            if not good:
                if own:
                    rows.append([cure, str(len(own)), f"refused: {own[0]['failed'][:160]}", *[""] * 8])
                continue
            cells = [spread(good, "shift"), spread(good, "shift_after")]
            for index in (0, 1):
                cells += [spread(good, "before", index), spread(good, "cured", index)]
            cells += [spread(good, "shift_again"), spread(good, "again", 0), spread(good, "again", 1)]
            rows.append([cure, str(len(good)), *cells])
        if rows:
            sections.append(f"## {case}\n\n{table(header, rows)}")
    return "\n\n".join(sections)


def spread(records: list[dict[str, Any]], key: str, index: int | None = None) -> str:
    """Mean and standard deviation over seeds; empty where it was not measured."""
    values = [record[key] if index is None else record[key][index] for record in records if record.get(key)]
    if not values:
        return ""
    digits = 1 if index == 1 else 3
    values = [100 * value for value in values] if index == 1 else values
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def main() -> None:
    """Measures what is not stored yet and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--case", default="", help="only kinds of networks whose name has this text")
    parser.add_argument("--tables", action="store_true", help="only write the tables of what is stored")
    arguments = parser.parse_args()
    path = STORE / "cures.jsonl"
    STORE.mkdir(exist_ok=True)
    for seed in range(arguments.seeds if not arguments.tables else 0):
        for name, case in CASES.items():
            if arguments.case not in name or (name.startswith("CIFAR") and not folder().is_dir()):
                continue
            done = {r["cure"] for r in stored(path) if (r["case"], r["seed"]) == (name, seed)}
            missing = {cure: options for cure, options in CURES.items() if cure not in done}
            for record in measure(case, seed, missing) if missing else ():
                with path.open("a") as file:
                    file.write(json.dumps({"case": name, "seed": seed, **record}) + "\n")
                print(name, seed, record, flush=True)
    text = (
        "Mean ± standard deviation over seeds of what `varshift.fix(model, loader=..., cures={...})` does. "
        "Shift: the largest of all norms, deployed over learned variance or its inverse, on 4 batches of the "
        "training data. Loss and accuracy (%) are in `eval()` on held-out data: as trained, after the cure "
        "alone, and after the same short training again, where the cure changes what is trained; the row "
        '"nothing" is that training without a cure (`python benchmarks/cures.py`).\n\n'
    )
    write("cures", "What the cures do", text + page(stored(path)))


if __name__ == "__main__":
    main()
