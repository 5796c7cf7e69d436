"""`predict`: what every norm of a network will see, from its weights and statistics alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from varshift._errors import DataError, ModelError
from varshift.flow import Capture, Flow, NoiseSite, NormSite, Ref, capture
from varshift.model import (
    Call,
    Forward,
    batch_size,
    is_joinable,
    is_whole,
    map_tensors,
    read_call,
    tensors,
    unwrap,
)
from varshift.theory import noise_variance

from ._anchor import Anchor
from ._answers import Answers
from ._clean_pass import CleanPass
from ._fields import made_up_input
from ._interpreter import wide
from ._noise import multiplies
from ._operators import UnknownOperator, bound
from ._outcome import Outcome, Watch
from ._prediction import Confidence, LayerPrediction, Method, Prediction, State
from ._train_pass import ONE_DRAW, TrainPass, gated

_PIXELS = 3 * 224 * 224  # positions of an input, all samples together, that a pass works on
_FEW, _MANY = 3, 256
# Gates have one value per sample: so many samples, as long as their positions are not so many times as many.
_GATED, _GATED_TIMES = 96, 8
_GATED_FEW = 16  # samples below which what gates do is not known
_IMPLAUSIBLE = 1.3  # times the learned variance: without its noise a signal has less, and hardly ever more
_FEW_VALUES = 256  # values per channel below which an estimate is called uncertain
# Operations that no average over draws settles: a noisy denominator, as in a norm per sample written by hand.
_WEAK = frozenset(
    ["div", "divide", "true_divide", "reciprocal", "pow", "sqrt", "rsqrt", "log", "log2", "log10", "log1p"]
) | {ONE_DRAW}
# Which tokens attend to which, made-up inputs do not tell.
_ATTENTION = frozenset(["matmul", "bmm", "baddbmm", "scaled_dot_product_attention"])
_SHARED = ("channel_dropout", "drop_path", "drop_block", "feature_alpha_dropout")

_NORMS_USE: dict[str, Literal["running", "batch"]] = {"eval": "running", "clean": "batch"}

Key = tuple[str, int]


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
        (True, 'high')
        >>> prediction.what_if({"2": 0.1}).layer("3").ratio > layer.ratio
        True

    Reference:
        The separation of data and noise follows A. Shekhovtsov, B. Flach, arXiv 1803.10560, of which only the
        abstract was available; anchoring is this package's own.
    """
    _check_arguments(model, data, shape, method, seed)
    network = unwrap(model)
    real = data is not None and method != "anchored"
    with torch.random.fork_rng(devices=[]):
        batch = _examples(network, _shapes(shape)) if data is None else _gather(data, _MANY)
    call = read_call(network, batch, forward)
    count, most = (sample_count(call, real, gates=gates) for gates in (False, True))
    if real:
        for tensor in input_tensors(call, most):
            _require_finite(tensor)
    captured = capture(network, call, forward=forward, samples=count)
    if captured.train is not None and count < most and gated(captured.train):
        count = most
        captured = capture(network, call, forward=forward, samples=count)
    if captured.train is None or captured.eval is None:
        raise ModelError(f"both modes of the network are needed: {' '.join(captured.failures)}")
    inputs = input_tensors(call, count)
    return Session(network, captured, captured.train, captured.eval, inputs, real, seed).predict({})


@dataclass
class Session:
    """A captured network with inputs; predicts for any rates."""

    network: nn.Module
    captured: Capture
    train: Flow
    evaluation: Flow
    inputs: list[Tensor]
    real: bool
    seed: int
    anchors: Mapping[Key, Anchor] | None = None
    base: Outcome | None = None
    answers: Answers | None = None

    @cached_property
    def gates(self) -> bool:
        """Whether the network has gates."""
        return gated(self.train)

    def predict(self, rates: Mapping[str, float]) -> Prediction:
        """The prediction at the network's own rates, or at others with the gains of the first run."""
        changed = self._changed(rates)
        found = self.follow(changed)
        if self.base is None:
            self.anchors, self.base = found.anchors, found
        return self._prediction(found, changed)

    def answer(self, rates: Sequence[Mapping[str, float]]) -> list[Prediction]:
        """Predictions for several sets of rates, from what was kept of the passes through the network."""
        changed = [self._changed(given) for given in rates]
        assert self.base is not None
        if self.answers is None:
            self.answers = Answers(self, self.base)
        return [
            self._prediction(found, given)
            for found, given in zip(self.answers.ask(changed), changed, strict=True)
        ]

    def follow(
        self,
        changed: Mapping[int, float],
        watch: Watch | None = None,
        states: Sequence[str] = tuple(_NORMS_USE),
        *,
        first: bool = False,
    ) -> Outcome:
        """Runs the pass in training, and one without noise for each of the states.

        Args:
            changed: Rates other than the network's, by noise site.
            watch: Is handed every pass before it runs.
            states: ``"eval"``, ``"clean"`` or both.
            first: Whether to find the gains of the anchors, and not to keep those of the first run.
        """
        failed: dict[str, str] = {}
        passes: dict[str, CleanPass] = {}
        with self._prepared() as (tensors, inputs):
            train = TrainPass(
                self.train,
                tensors,
                inputs,
                made_up=not self.real,
                # Real data have their own size; made-up ones are put on that of the norms' statistics.
                trusted=frozenset() if self.real else _trusted(self.train, tensors),
                rates=changed,
                frozen=None if first else self.anchors,
            )
            for state in ("train", *states):
                run = train
                if state != "train":
                    use, done = _NORMS_USE[state], next(iter(passes.values()), None)
                    run = CleanPass(self.evaluation, tensors, inputs, train.anchors, use)
                    run = passes[state] = run if done is None else done.other(use)
                if watch is not None:
                    watch(state, run)
                run.run()
                failed.update(run.failed)
        observed = {state: run.observed for state, run in passes.items()}
        return Outcome(train.anchors, observed, train.untreated, failed)

    def _changed(self, rates: Mapping[str, float]) -> dict[int, float]:
        names = _site_names(self.train)
        changed = {place: rates[name] for place, name in enumerate(names) if name in rates}
        for place, rate in changed.items():
            _check_rate(self.train.noises[place], rate)
        return changed

    @contextmanager
    def _prepared(self) -> Iterator[tuple[dict[str, Tensor], list[Tensor]]]:
        """The network's tensors and the inputs, with random numbers from the seed."""
        tensors = {name: wide(tensor.detach()) for name, tensor in self.network.named_parameters()}
        # Copies: some operations write to statistics without saying so.
        tensors |= {name: wide(tensor.detach().clone()) for name, tensor in self.network.named_buffers()}
        device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
        devices = [device] if device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            inputs = [wide(x.to(device)) for x in self.inputs]
            yield tensors, inputs if self.real else [made_up_input(x) for x in inputs]

    def _prediction(self, found: Outcome, changed: Mapping[int, float]) -> Prediction:
        names = _site_names(self.train)
        layers = _layers(self.train, names, found, real=self.real, gates=self.gates)
        known = {
            name: changed.get(place, site.rate)
            for place, (name, site) in enumerate(zip(names, self.train.noises, strict=True))
            if site.rate is not None
        }
        seen = {layer.name for layer in layers}
        limits = _limits(self.captured, self.train, found, seen, real=self.real)
        method: Method = "hybrid" if self.real else "anchored"
        clean = found.observed["clean"]
        statistics = {
            site.name: (
                _average([clean[site.name, call].mean for call in range(len(site.calls))]),
                _average([clean[site.name, call].variance for call in range(len(site.calls))]),
            )
            for site in self.train.norms
            if all((site.name, call) in clean for call in range(len(site.calls)))
        }
        return Prediction(layers, known, method, limits, statistics, self)


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


def _examples(network: nn.Module, shapes: Sequence[tuple[int, ...]]) -> Any:
    parameter = next((p for p in network.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    count = min(_MANY, _fitting([math.prod(sizes[1:]) for sizes in shapes], gates=True))
    examples = tuple(torch.randn(count, *sizes).to(dtype) for sizes in shapes)
    return examples[0] if len(examples) == 1 else examples


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


def _site_names(flow: Flow) -> list[str]:
    counts: dict[str, int] = {}
    names = []
    for site in flow.noises:
        counts[site.name] = counts.get(site.name, 0) + 1
        names.append(site.name if counts[site.name] == 1 else f"{site.name}:{counts[site.name]}")
    return names


def _check_rate(site: NoiseSite, rate: float) -> None:
    if multiplies(site):
        noise_variance(site.kind, rate)
    elif not rate >= 0:
        raise ValueError(f"rate={rate!r} of {site.name!r} must be at least 0.")


def learned_norms(network: nn.Module, flow: Flow) -> frozenset[str]:
    """Names of the norms whose running statistics say something."""
    return _trusted(flow, dict(network.named_buffers()))


def _trusted(flow: Flow, tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """Norms whose statistics have been learned: not still exactly 0 and 1, finite, and positive."""
    found = set()
    for site in flow.norms:
        mean, variance = (tensors.get(_buffer(flow, site, name)) for name in ("running_mean", "running_var"))
        if mean is None or variance is None:
            continue
        moved = bool((mean != 0).any() or (variance != 1).any())
        sound = bool(torch.isfinite(mean).all() and torch.isfinite(variance).all() and (variance >= 0).all())
        if moved and sound:
            found.add(site.name)
    return frozenset(found)


def _buffer(flow: Flow, site: NormSite, argument: str) -> str:
    """Name of the buffer that a norm is handed as its running mean or variance."""
    node = flow.nodes[site.calls[0]]
    try:
        given = bound(node).get(argument)
    except UnknownOperator:
        given = None
    target = flow.nodes[given.index].target if isinstance(given, Ref) else None
    return target or (f"{site.name}.{argument}" if site.name else argument)


def _layers(
    flow: Flow, names: Sequence[str], found: Outcome, *, real: bool, gates: bool
) -> tuple[LayerPrediction, ...]:
    layers: list[LayerPrediction] = []
    observed = found.observed
    implausible = False
    for site in flow.norms:
        keys = [(site.name, call) for call in range(len(site.calls))]
        keys = [
            key for key in keys if key in found.anchors and all(key in seen for seen in observed.values())
        ]
        if not keys or not site.tracked:
            continue
        figures = [part for key in keys for part in _figures(key, found)]
        if not all(bool(torch.isfinite(part).all()) for part in figures):
            continue
        anchors = [found.anchors[key] for key in keys]
        seen = {state: [at[key] for key in keys] for state, at in observed.items()}
        learned = _average([a.variance for a in anchors])
        centre = _average([a.channels_mean for a in anchors])
        noise = _average([a.noise for a in anchors])
        variance = {state: _average([o.variance for o in calls]) for state, calls in seen.items()}
        mean = {state: _average([o.mean for o in calls]) for state, calls in seen.items()}
        offset = (mean["eval"] - centre) / learned.clamp_min(1e-20).sqrt()
        training = State(float(centre.mean()), float(learned.mean()))
        ratio, local = (float(variance[state].mean() / learned.mean()) for state in ("eval", "clean"))
        upstream = tuple(
            name for name, noisy in zip(names, flow.noises, strict=True) if site.name in noisy.reaches
        )
        # Noise that is not scaled does it, too, but behind operations without a rule it is likely an error,
        # and what is wrong at one norm is so at all behind it.
        unruled = bool(upstream) and any(anchor.doubts for anchor in anchors)
        implausible = implausible or (unruled and max(ratio, local) > _IMPLAUSIBLE)
        samples = site.shapes[0][0] if site.shapes and site.shapes[0] else 0
        doubtful = bool(upstream) and (implausible or (gates and samples < _GATED_FEW))
        layers.append(
            LayerPrediction(
                name=site.name,
                cls=site.cls,
                source=site.source,
                ratio=ratio,
                local_ratio=local,
                mean_offset=float(offset.square().mean().sqrt()),
                noise_share=float(noise.mean() / learned.mean()),
                states={
                    "train": training,
                    "clean": State(float(mean["clean"].mean()), float(variance["clean"].mean())),
                    "sampling": training,
                    "eval": State(float(mean["eval"].mean()), float(variance["eval"].mean())),
                },
                confidence="low" if doubtful else _confidence(site, flow, found, anchors, real=real),
                noise=upstream,
            )
        )
    return tuple(layers)


def _figures(key: Key, found: Outcome) -> list[Tensor]:
    made = found.anchors[key]
    figures = [made.channels_mean, made.variance, made.noise]
    for observed in found.observed.values():
        figures += [observed[key].mean, observed[key].variance]
    return figures


def _confidence(
    site: Any, flow: Flow, found: Outcome, anchors: Sequence[Anchor], *, real: bool
) -> Confidence:
    upstream = [(place, noise) for place, noise in enumerate(flow.noises) if site.name in noise.reaches]
    if not upstream:
        return "high"
    unknown = any(place in found.untreated for place, _ in upstream)
    unknown = unknown or any(a.stand_in is not None for a in anchors)
    if not site.batch_statistics:  # frozen: what it holds was learned in another training
        unknown = True
    unknown = unknown or any(a.doubts & (_WEAK if real else _WEAK | _ATTENTION) for a in anchors)
    if unknown or not (real or all(a.anchored for a in anchors)):
        return "low"
    shape = site.shapes[0] if site.shapes else ()
    values = math.prod(shape) // max(shape[1], 1) if len(shape) > 1 else 0
    shared = any(noise.kind in _SHARED for _, noise in upstream)
    doubts = any(anchor.doubts for anchor in anchors)
    return "medium" if shared or doubts or values < _FEW_VALUES else "high"


def _average(values: Sequence[Tensor]) -> Tensor:
    return torch.stack([value.double() for value in values]).mean(0)


def _limits(
    captured: Capture,
    flow: Flow,
    found: Outcome,
    seen: set[str],
    *,
    real: bool,
) -> tuple[str, ...]:
    limits = list(captured.limits)
    for site in found.untreated.values():
        limits.append(f"The noise of {site.name!r} ({site.kind}) could not be followed: it counts as none.")
    for name, reason in found.failed.items():
        limits.append(
            f"The operation {name!r} could not be followed ({reason}): norms behind it are left out."
        )
    new = [a.name for a in found.anchors.values() if not a.anchored]
    if new and not real:
        limits.append(
            f"{len(new)} norms have not learned their statistics ({new[0]!r}, ...): there the size of the "
            "data is propagated, not known."
        )
    missing = [site.name for site in flow.norms if site.tracked and site.name not in seen]
    if missing:
        limits.append(f"{len(missing)} norms are left out ({missing[0]!r}, ...).")
    return tuple(limits)
