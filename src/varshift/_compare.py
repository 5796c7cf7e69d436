"""The front door of comparisons: variants of a network over seeds, with an honest verdict."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from varshift._arguments import count
from varshift._errors import DataError, ModelError, VarshiftError
from varshift.comparison import (
    LEVEL,
    POWER,
    REFERENCE,
    Comparison,
    Criterion,
    LoopSettings,
    Own,
    Place,
    Results,
    Setup,
    Variant,
    VariantRow,
    carry_out,
    check_sendable,
    judge_pairs,
    looks_of,
    row_of,
    variants_of,
)
from varshift.model import Forward, Guard, loader_of, network_of, one_at_a_time
from varshift.probe import model_device

if TYPE_CHECKING:
    from varshift.probe import Loss, Progress

EPOCHS = 5


def compare(
    model: nn.Module | Callable[[], nn.Module],
    train: Callable[..., Any] | None = None,
    loader: Iterable[Any] | None = None,
    *,
    val_loader: Iterable[Any] | None = None,
    variants: Sequence[str | Variant] | Mapping[str, Own] | None = None,
    seeds: int | Sequence[int] = 3,
    epochs: int | None = None,
    learning_rate: float = 1e-3,
    measure: str = "loss",
    higher_is_better: bool | None = None,
    forward: Forward | None = None,
    loss: Loss | None = None,
    store: str | os.PathLike[str] | None = None,
    workers: int = 0,
    executor: str = "local",
    executor_options: Mapping[str, Any] | None = None,
    early_stop: bool = True,
    retry: bool = False,
    fresh: bool = False,
    device: torch.device | str | None = None,
    target: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Trains variants of a network over several seeds, and says which differ.

    Every variant is trained with the same seeds. Variants of one seed start from the same weights where
    shapes agree, and see the same samples in the same order, augmented alike. So each seed gives one
    difference for each pair of variants. A paired t test, corrected for the number of pairs, says whether
    two variants differ, or how many seeds would tell.

    The model and the data are left as they were found.

    Args:
        model: A function without arguments that makes the network: each seed then has initial weights of its
            own. Or the network itself: every training starts from its weights.
        train: Trains a network in place: a function of network and loader. It may also name the parameters
            ``seed``, ``epochs``, ``device`` and ``folder``; in the folder it may keep a state and find it
            again after an interruption. It returns nothing, the network to judge, or a mapping of names to
            numbers, which can be compared too. By default a short loop: AdamW, a warm-up and a cosine, with
            the loss of `check`.
        loader: Batches to train on.
        val_loader: Batches to judge on; by default those of `loader`.
        variants: Names of `varshift.comparison.VARIANTS`, or a mapping that gives each name a function from a
            network to a network, a list of cures, or a `varshift.Variant`. The network as it is, ``"as-is"``,
            is always among them, and the others are compared with it.
        seeds: Number of seeds, or the seeds.
        epochs: Passes over the data of the built-in loop, 5 by default; told to `train` if it names it.
        learning_rate: Largest learning rate of the built-in loop.
        measure: What variants are judged by: ``"loss"`` or ``"accuracy"`` in ``eval()``, or a name that
            `train` returns.
        higher_is_better: Whether a higher figure is better; by default for ``"accuracy"`` only.
        forward: Function of model and batch that runs the model, as in `check`.
        loss: Function of outputs and targets, as in `check`.
        store: Folder where results are kept: after an interruption, or being killed, the same call goes on,
            and a call with more seeds or variants trains what is missing. Results are those of the same
            network, data and functions, known by their content; what functions call is not looked into, so
            use `fresh` after a change there.
        workers: Number of worker processes; 0 trains in this process. Workers import the functions and are
            sent the data. They compute with one thread each.
        executor: Who starts workers: ``"local"``, ``"slurm"`` or ``"ray"``.
        executor_options: Settings of the executor.
        early_stop: Whether a variant gets no more seeds once it is settled, after three or more, that it is
            worse than another one. The reference is never stopped. What this costs is part of the level: the
            chance of any false verdict, those that stop a variant included, is at most 5 %.
        retry: Whether trainings that failed before are tried again.
        fresh: Whether everything is trained again.
        device: Where to train; by default the model's device.
        target: What the result calls the network; by default its class.
        progress: Called with what is trained, trainings done and trainings in all.

    Returns:
        The comparison, plain data; ``print(comparison)`` shows it.

    Raises:
        ModelError: If the model is neither a network nor a function that makes one.
        DataError: If there are no data, or no loss to judge by.
        VarshiftError: If an argument is wrong, nothing can be sent to workers, or the reference cannot be
            trained with any seed.
        KeyboardInterrupt: If it is interrupted.

    Example:
        >>> import torch, varshift as vs
        >>> from torch import nn
        >>> def build():
        ...     return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))
        >>> x = torch.randn(64, 4)
        >>> data = [(x[i : i + 16], (x[i : i + 16, 0] > 0).long()) for i in range(0, 64, 16)]
        >>> table = vs.compare(build, loader=data, variants=["recalibrated"], seeds=2, epochs=1)
        >>> [row.name for row in table.variants]
        ['as-is', 'recalibrated']
    """
    chosen = variants_of(variants)
    numbers = _seeds(seeds)
    if loader is None:
        raise DataError("loader is None: pass the batches to train on.")
    if not isinstance(model, nn.Module) and not callable(model):
        raise ModelError(
            f"model is a {type(model).__name__}: pass a network, or a function without arguments that "
            "makes one."
        )
    if train is not None and not callable(train):
        raise VarshiftError(f"train is a {type(train).__name__}: pass a function of network and loader.")
    workers = count("workers", workers, 0)
    if epochs is not None:
        epochs = count("epochs", epochs, 1)
    training = _repeatable(loader_of(loader))
    judged = (
        training
        if val_loader is None
        else _repeatable(loader_of(val_loader, argument="val_loader", trains=False))
    )
    setup = Setup(
        model,
        train,
        training,
        judged,
        LoopSettings(epochs or (EPOCHS if train is None else 0), learning_rate),
        forward,
        loss,
    )
    higher = measure == "accuracy" if higher_is_better is None else higher_is_better
    criterion, looks = Criterion(measure, higher), looks_of(len(numbers), early_stop)
    with one_at_a_time, Guard() as guard:
        guard.keep(setup.loader, setup.judged)
        refused = setup.prepare(chosen, numbers[0])
        network = setup.reference(numbers[0])
    if workers:
        check_sendable(setup)
    with _folder(store) as folder:
        place = Place(
            folder,
            str(device) if device is not None else str(model_device(network)),
            workers,
            executor,
            dict(executor_options or {}),
            retry=retry,
            fresh=fresh,
            progress=progress,
        )
        results = carry_out(setup, numbers, place, criterion, looks)
    _check_results(results, criterion)
    pairs = judge_pairs(results.figures, list(setup.variants), criterion, looks)
    return Comparison(
        target=target or type(network_of(network)).__name__,
        measure=measure,
        higher=higher,
        judged_on="training data" if val_loader is None else "validation data",
        reference=REFERENCE,
        seeds=numbers,
        level=LEVEL,
        power=POWER,
        variants=tuple(_row(variant, results, refused, criterion) for variant in chosen.values()),
        pairs=tuple(pairs),
        notes=_notes(len(numbers), isinstance(model, nn.Module)),
    )


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        return tuple(range(count("seeds", seeds, 1)))
    if not isinstance(seeds, Sequence) or isinstance(seeds, str) or not seeds:
        raise VarshiftError(f"seeds={seeds!r} must be a number of seeds, or a list of them.")
    numbers = tuple(count("seeds", seed, 0) for seed in seeds)
    if len(set(numbers)) < len(numbers):
        raise VarshiftError(f"seeds={seeds!r}: each seed must come once.")
    return numbers


def _repeatable(loader: Any) -> Any:
    """What can be gone through once only, as a list."""
    return list(loader) if isinstance(loader, Iterator) else loader


@contextlib.contextmanager
def _folder(store: str | os.PathLike[str] | None) -> Iterator[Path]:
    if store is not None:
        yield Path(store)
        return
    with tempfile.TemporaryDirectory(prefix="varshift-compare-") as name:
        yield Path(name)


def _check_results(results: Results, criterion: Criterion) -> None:
    """Makes sure that there is something to compare with.

    Raises:
        VarshiftError: If the reference has no result, or results lack the figure that is compared.
    """
    own = results.figures[REFERENCE]
    if not own:
        reason = next(iter(results.failures[REFERENCE].values()), "it has no result")
        raise VarshiftError(f"the network as it is could not be trained with any seed: {reason}")
    for name, figures in results.figures.items():
        for entry in figures.values():
            if criterion.measure not in entry:
                raise VarshiftError(
                    f"measure={criterion.measure!r} was not measured of {name!r}: there is "
                    f"{', '.join(key for key in entry if key not in ('samples', 'seconds'))}."
                )


def _row(variant: Variant, results: Results, refused: Mapping[str, str], criterion: Criterion) -> VariantRow:
    name = variant.name
    if name in refused:
        return row_of(variant, {}, criterion, "unavailable", refused[name])
    figures, failures = results.figures[name], results.failures[name]
    note = ""
    if failures:
        seeds = ", ".join(map(str, failures))
        note = f"no result with seed {seeds}: {next(iter(failures.values()))}"
    if not figures:
        return row_of(variant, {}, criterion, "failed", note)
    if name in results.stopped:
        return row_of(variant, figures, criterion, "stopped", results.stopped[name])
    return row_of(variant, figures, criterion, "measured", note)


def _notes(seeds: int, fixed: bool) -> tuple[str, ...]:
    notes = []
    if seeds < 2:
        notes.append("One seed shows nothing of the spread: no verdict is possible.")
    if fixed:
        notes.append(
            "All seeds start from the weights that the network has: the spread is that of the order of the "
            "data and of the noise. Pass a function that makes the network to include initial weights."
        )
    return tuple(notes)
