"""Whether noise moves the mean of the outputs: a few samples, several times with noise and once without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from varshift.flow import Flow, RecognisedNorms
from varshift.model import Call, Forward, Norm, Shadow, map_tensors, primary_output, seed_all, tensors
from varshift.probe._loss import Loss, batch_loss
from varshift.probe._pass import run_pass
from varshift.probe._quiet import Quiet
from varshift.probe._states import measurable_norms, set_noise
from varshift.probe._tap import Tap
from varshift.probe._trial_types import Incomparable
from varshift.probe._types import NoiseBias

_GROUPS = 8  # batches that are looked at: the error is the spread over them
_SAMPLES = 8  # of each batch
_FIRST, _ALL = 2, 16  # draws of the noise: a few, and all where those show something
_NOTABLE_SHARE = 0.02  # of the loss, or of the squared residual
_NOTABLE_BIAS = 0.15  # of the outputs' spread


def measure_noise_bias(
    shadow: Shadow,
    calls: Sequence[Call],
    flow: Flow,
    recognised: RecognisedNorms,
    *,
    forward: Forward | None = None,
    loss: Loss | None = None,
    gains: bool = False,
    seed: int = 0,
) -> NoiseBias:
    """Compares the mean of the outputs over the noise with the output without noise.

    All norms use their running statistics, and all modules stay in train mode, so that nothing but the noise
    differs. The two means over half of the draws each are independent, so the product of their biases has no
    error of its own on average::

        bias^2 = mean[(m_1 - f) (m_2 - f)],    f without noise, m_1 and m_2 means over the noise

    A loss of a mean of K draws is too high by about c / K. The loss at infinitely many is extrapolated from
    both halves and the whole::

        L = 2 L(K) - [L(K / 2) + L'(K / 2)] / 2

    Args:
        shadow: Stands in for the network.
        calls: The batches that were drawn.
        flow: The network as captured in train mode.
        recognised: Its norms.
        forward: The user's function of model and batch, if any.
        loss: The user's function of outputs and targets, if any.
        gains: Whether the loss is known to fall where the noise is off.
        seed: Seed of the noise.

    Raises:
        Incomparable: If a batch cannot be cut, or outputs cannot be averaged.
    """
    few = [call.take(_SAMPLES) for call in calls[:_GROUPS]]
    groups = [_Group(call) for call in few if call is not None]
    if not groups:
        raise Incomparable("a batch cannot be cut")
    probe = _Probe(shadow, measurable_norms(shadow.network, recognised), flow, forward, loss)
    probe.run_quietly(groups)
    seed_all(seed)
    probe.run_noisily(groups, _FIRST)
    first = _summary(groups, _FIRST)
    if _is_notable(first, gains):
        probe.run_noisily(groups, _ALL - _FIRST)
        return _summary(groups, _ALL)
    return first


@dataclass
class _Group:
    """A few samples of one batch, and what they brought."""

    call: Call
    clean: Any = None
    clean_loss: float | None = None
    sums: list[list[Tensor]] = field(default_factory=lambda: [[], []])  # of the outputs, in two halves
    losses: tuple[float, ...] | None = (
        None  # of the mean over all draws, over the first half, over the second
    )

    def add(self, outputs: Any, half: int) -> None:
        """Adds a draw."""
        drawn = [_as_sum(tensor) for tensor in tensors(outputs)]
        if [one.shape for one in drawn] != [one.shape for one in tensors(self.clean)]:
            raise Incomparable("the shape of the outputs depends on the noise")
        sums = self.sums[half]
        self.sums[half] = [a + b for a, b in zip(sums, drawn, strict=True)] if sums else drawn

    def mean(self, draws: int, half: int | None = None) -> Any:
        """Outputs averaged over the draws, or over half of them."""
        if half is None:
            totals = [(a + b) / draws for a, b in zip(*self.sums, strict=True)]
        else:
            totals = [total / (draws // 2) for total in self.sums[half]]
        left = iter(totals)

        def averaged(tensor: Tensor) -> Tensor:
            mean = next(left)
            return mean.to(tensor.dtype) if tensor.is_floating_point() else tensor

        return map_tensors(self.clean, averaged)


def _as_sum(tensor: Tensor) -> Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor.detach()


class _Probe:
    def __init__(
        self, shadow: Shadow, norms: Sequence[Norm], flow: Flow, forward: Forward | None, loss: Loss | None
    ) -> None:
        self._shadow, self._norms, self._flow = shadow, norms, flow
        self._forward, self._loss = forward, loss
        shadow.run_eagerly(forward, loss)

    def run_quietly(self, groups: Sequence[_Group]) -> None:
        """Runs all groups without noise."""
        self._prepare()
        with Quiet(self._shadow.network, self._flow):
            for group in groups:
                group.clean = self._outputs(group.call)
                primary = primary_output(group.clean)
                if primary is None or not primary.is_floating_point() or primary.dim() == 0:
                    raise Incomparable("the network returns no output, or its loss only")
        for group in groups:
            group.clean_loss = self._loss_of(group.clean, group.call)

    def run_noisily(self, groups: Sequence[_Group], draws: int) -> None:
        """Adds draws of the noise to all groups."""
        self._prepare()
        for group in groups:
            for draw in range(draws):
                group.add(self._outputs(group.call), draw % 2)
            total = draws if group.losses is None else draws + _FIRST
            means = (group.mean(total), group.mean(total, 0), group.mean(total, 1))
            losses = [self._loss_of(mean, group.call) for mean in means]
            known = tuple(value for value in losses if value is not None and math.isfinite(value))
            group.losses = known if len(known) == len(losses) else ()

    def _prepare(self) -> None:
        """Train mode, with norms on their running statistics."""
        network = self._shadow.fresh()
        set_noise(network, self._norms, True)
        for norm in self._norms:
            if norm.kind == "custom":
                for module in (norm.module, *(state.module for state in norm.own_states)):
                    module.training = False

    def _outputs(self, call: Call) -> Any:
        tap = Tap(self._norms, "running", record=False)
        outputs = run_pass(self._shadow.network, self._forward, call.copy(), tap)
        return map_tensors(outputs, lambda tensor: tensor.detach().clone())

    def _loss_of(self, outputs: Any, call: Call) -> float | None:
        if getattr(outputs, "loss", None) is not None or (isinstance(outputs, dict) and "loss" in outputs):
            return None  # the model's own loss is not that of its averaged outputs
        return batch_loss(outputs, call.copy(), self._loss)


def _summary(groups: Sequence[_Group], draws: int) -> NoiseBias:
    squares, offsets, deltas, residuals, cleans = [], [], [], [], []
    for group in groups:
        clean, one, other = (
            primary_output(value).double()  # type: ignore[union-attr]
            for value in (group.clean, group.mean(draws, 0), group.mean(draws, 1))
        )
        squares.append(float(((one - clean) * (other - clean)).mean()))
        offsets.append(float((clean - (one + other) / 2).mean()))
        cleans.append(clean)
        target = _target_like(clean, group.call.targets)
        if target is not None:
            residuals.append(float(((target - one) * (target - other)).mean()))
        if group.clean_loss is not None and group.losses:
            whole, first, second = group.losses
            deltas.append((group.clean_loss, 2 * whole - (first + second) / 2))
    square, square_error = _mean_and_error(squares)
    bias = math.sqrt(max(square, 0.0))
    offset, offset_error = _mean_and_error(offsets)
    compared = len(deltas) == len(groups)
    step, step_error = _mean_and_error([a - b for a, b in deltas]) if compared else (None, None)
    return NoiseBias(
        samples=sum(group.call.size for group in groups),
        groups=len(groups),
        draws=draws,
        bias=bias,
        bias_error=square_error / (2 * bias) if square_error is not None and bias > 0 else None,
        offset=offset,
        offset_error=offset_error,
        spread=_spread(cleans),
        residual=math.sqrt(max(sum(residuals) / len(residuals), 0.0))
        if len(residuals) == len(groups)
        else None,
        loss=sum(a for a, _ in deltas) / len(deltas) if compared else None,
        loss_step=step,
        loss_step_error=step_error,
        fits_numbers=_fits_numbers([group.call.targets for group in groups]),
    )


def _is_notable(found: NoiseBias, gains: bool) -> bool:
    """Whether a few draws show something that more of them should settle."""
    bias = found.bias + (found.bias_error or 0.0)
    if found.offset_error is not None and abs(found.offset) > 2 * found.offset_error:
        bias = max(bias, abs(found.offset))  # better known than the bias of every output
    if found.fits_numbers and found.residual:
        return bias**2 > _NOTABLE_SHARE * found.residual**2
    if found.loss is not None and found.loss_step is not None:
        return not gains and found.loss_step > _NOTABLE_SHARE * max(found.loss - found.loss_step, 0.0)
    return bias > _NOTABLE_BIAS * found.spread


def _mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """A mean and its standard error, None for fewer than two values."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _spread(outputs: Sequence[Tensor]) -> float:
    """How much outputs differ from sample to sample: root mean square around the mean of each output."""
    shapes = {tuple(output.shape[1:]) for output in outputs}
    whole = torch.cat([o if len(shapes) == 1 else o.reshape(-1, 1) for o in outputs])
    return float(whole.var(0, correction=0).mean().sqrt())


def _target_like(output: Tensor, target: Any) -> Tensor | None:
    if not isinstance(target, Tensor) or not target.is_floating_point() or target.numel() != output.numel():
        return None
    return target.to(output.device, output.dtype).reshape(output.shape)


def _fits_numbers(targets: Sequence[Any]) -> bool:
    """Whether targets are numbers to be met, not classes or probabilities."""
    numbers = [target for target in targets if isinstance(target, Tensor) and target.is_floating_point()]
    if len(numbers) < len(targets):
        return False
    return any(bool((target < 0).any() or (target > 1).any()) for target in numbers)
