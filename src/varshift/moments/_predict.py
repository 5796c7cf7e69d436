"""`predict`: what every norm of a network will see, from its weights and statistics alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from varshift._errors import DataError, ModelError
from varshift.flow import Flow, capture_in_place
from varshift.model import (
    Call,
    Forward,
    Reader,
    batch_size,
    is_joinable,
    is_whole,
    map_tensors,
    network_of,
    one_at_a_time,
    shadowed,
    tensors,
)

from ._prediction import Prediction
from ._session import Session
from ._train_pass import gated

_PIXELS = 3 * 224 * 224  # positions of an input, all samples together, that a pass works on
_FEW, _MANY = 3, 256
# Gates have one value per sample: so many samples, as long as their positions are not so many times as many.
_GATED, _GATED_TIMES = 96, 8


def predict(
    model: nn.Module,
    data: Any = None,
    *,
    shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
    method: Literal["auto", "anchored", "hybrid"] = "auto",
    forward: Forward | None = None,
    seed: int = 0,
) -> Prediction:
    """Predicts what every norm of a network sees in training and in evaluation.

    Noise and data are followed apart through the network. What noise does to a variance follows from the
    weights. What the weights make of the data cannot be known without data, but a trained norm knows it: its
    running variance is the total of both, so ``data = V - noise``. Every norm is such an anchor. Between two
    anchors, made-up inputs with the spectrum of natural signals carry the way in which data and noise add up,
    and are put right at each norm. Three views are followed: training with its noise, and without noise
    `clean` and `eval`.

    Args:
        model: A trained network; its statistics are read, nothing of it is changed.
        data: Example inputs, one batch as a tensor or tuple, or a loader. With ``method="anchored"`` only
            integers and single numbers per sample are used as they are, and of the rest the shapes.
        shape: Instead of data: the shape of an input without the batch dimension, or several of them.
        method: ``"anchored"`` needs no data; ``"hybrid"`` follows up to 256 real samples instead of made-up
            ones, and needs no running statistics; ``"auto"`` takes `hybrid` if there are data.
        forward: How the model is called with a batch; as in `check`.
        seed: Seed of the made-up inputs and the noise.

    Returns:
        The prediction, with the report's names for the figures.

    Raises:
        ModelError: If the network cannot be captured in both modes.
        DataError: If there are neither data nor a shape, or the data are not finite.
        ValueError: If an argument is out of range.

    Example:
        >>> import torch, varshift as vs
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm2d(8))
        >>> for _ in range(200):
        ...     _ = net(torch.randn(32, 3, 8, 8))  # the norm learns its statistics
        >>> prediction = vs.predict(net, shape=(3, 8, 8))
        >>> layer = prediction.layer("3")
        >>> 0.3 < layer.ratio < 0.45, layer.confidence
        (True, 'medium')
        >>> prediction.what_if({"2": 0.1}).layer("3").ratio > layer.ratio
        True

    Reference:
        The separation of data and noise follows A. Shekhovtsov, B. Flach, arXiv 1803.10560, of which only the
        abstract was available; anchoring is this package's own.
    """
    _check_arguments(model, data, shape, method, seed)
    network = network_of(model)
    real = data is not None and method != "anchored"
    with one_at_a_time, shadowed(network) as shadow, shadow, shadow:
        shadow.keep(data)
        batch = examples_for(network, shape) if data is None else _gather(data, _MANY)
        call = Reader(network, forward).read_running(shadow.network, batch)
        shadow.fresh()
        count, most = (sample_count(call, real, gates=gates) for gates in (False, True))
        if real:
            for tensor in input_tensors(call, most):
                _require_finite(tensor)
        captured = capture_in_place(shadow.network, call, forward=forward, samples=count)
        if captured.train is not None and count < most and gated(captured.train):
            count = most
            captured = capture_in_place(shadow.fresh(), call, forward=forward, samples=count)
        inputs = [] if captured.train is None else captured_inputs(captured.train, call, count)
        return Session.of(network, captured, inputs, real=real, seed=seed).predict({})


def _check_arguments(model: Any, data: Any, shape: Any, method: Any, seed: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(f"model is a {type(model).__name__}: expected a torch.nn.Module.")
    if method not in ("auto", "anchored", "hybrid"):
        raise ValueError(f"method={method!r}: expected 'auto', 'anchored' or 'hybrid'.")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed={seed!r} must be a whole number.")
    if data is None and shape is None:
        raise DataError("there are neither data nor a shape: pass example inputs, a loader or shape=.")
    if data is not None and shape is not None:
        raise ValueError(f"shape={shape!r} beside data: it stands in for them, pass either.")
    if data is None and method == "hybrid":
        raise DataError("method='hybrid' needs data: pass example inputs or a loader, or use 'anchored'.")


def _shapes(shape: Any) -> list[tuple[int, ...]]:
    """The shapes asked for, one per input."""

    def sizes(given: Any) -> bool:
        return isinstance(given, Sequence) and all(type(size) is int and size > 0 for size in given)

    if sizes(shape) and len(shape):
        return [tuple(shape)]
    if isinstance(shape, Sequence) and len(shape) and all(map(sizes, shape)):
        return [tuple(part) for part in shape]
    raise ValueError(
        f"shape={shape!r} must be sizes of at least 1 without the batch dimension, as (3, 224, 224), "
        "or several such."
    )


def examples_for(network: nn.Module, shape: Any) -> Any:
    """Inputs of one or several shapes without the batch dimension, as many as a prediction may follow.

    Raises:
        ValueError: If `shape` is none.
    """
    shapes = _shapes(shape)
    parameter = next((p for p in network.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    count = most_samples(shapes)
    examples = tuple(torch.randn(count, *sizes, device="cpu").to(dtype) for sizes in shapes)
    return examples[0] if len(examples) == 1 else examples


def most_samples(shapes: Sequence[Sequence[int]]) -> int:
    """How many samples of inputs of these shapes, without the batch axis, a prediction follows at most."""
    return min(_MANY, _fitting([math.prod(sizes[1:]) for sizes in shapes], gates=True))


def _gather(data: Any, wanted: int) -> Any:
    """One batch of at least so many samples, if the data have them."""
    if is_whole(data):
        return data
    if isinstance(data, (str, bytes)) or not isinstance(data, (Tensor, tuple, Mapping, Iterable)):
        raise DataError(f"data is a {type(data).__name__}: expected example inputs or a loader.")
    if isinstance(data, (Tensor, tuple, Mapping)) or not isinstance(data, Iterable):
        return data
    batches: list[Any] = []
    for batch in data:
        batches.append(batch)
        if not is_joinable(batch) or sum(map(batch_size, batches)) >= wanted:
            break
    if not batches:
        raise DataError("the loader yields nothing: predict needs one batch, or shape=.")
    if len(batches) == 1 or not is_joinable(batches[-1]):
        return batches[0]
    columns: list[list[Tensor]] = []
    for batch in batches:
        columns.append(list(tensors(batch)))
    try:
        joined = iter([torch.cat(parts) for parts in zip(*columns, strict=True)])
    except (RuntimeError, ValueError):
        return batches[0]  # batches of different structure
    return map_tensors(batches[0], lambda _: next(joined))


def _require_finite(tensor: Tensor) -> None:
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise DataError("the data hold NaN or infinite values: nothing can be predicted from them.")


def sample_count(call: Call, real: bool, *, gates: bool = False) -> int:
    """How many samples of a batch a prediction follows: few of large inputs, more where there are gates."""
    positions = [math.prod(tensor.shape[2:]) for tensor in tensors(call.batch)]
    fitting = _fitting(positions, 4 if real else 1, gates=gates)
    return min(fitting, _MANY, max(call.size, 2))


def _fitting(positions: Sequence[int], times: int = 1, *, gates: bool = False) -> int:
    """How many samples of inputs with so many positions are enough: few of large ones."""
    fitting = round(_PIXELS / max(max(positions, default=1), 1))
    found = max(times * fitting, _FEW)
    return max(found, min(_GATED, _GATED_TIMES * fitting)) if gates else found


def input_tensors(call: Call, count: int) -> list[Tensor]:
    """The tensors of a batch in order, with its first samples; with all where it cannot be cut."""
    return list(tensors((call.take(count) or call).batch))


def captured_inputs(flow: Flow, call: Call, count: int) -> list[Tensor]:
    """The tensors that the inputs of a captured network stand for.

    Args:
        flow: The captured network.
        call: The batch that it was captured with.
        count: How many samples of it the capture was to use; it may have had to use all.
    """
    nodes = [node for node in flow.nodes if node.kind == "input"]
    held = [node.value for node in nodes if isinstance(node.value, Tensor)]  # what `forward=` brought along
    wanted = [node.shape for node in nodes if not isinstance(node.value, Tensor)]
    few, whole = input_tensors(call, count), list(tensors(call.batch))
    for found in (few, _distinct(few), whole, _distinct(whole)):
        if [tuple(tensor.shape) for tensor in found] == wanted:
            return found + held
    return few + held


def _distinct(values: Sequence[Tensor]) -> list[Tensor]:
    return list({id(value): value for value in values}.values())
