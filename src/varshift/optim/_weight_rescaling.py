"""Weight rescaling: scale-invariant weights are put back to unit norm after the optimiser's step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from varshift._arguments import count, positive
from varshift.optim._filters import Granularity, ScaleInvariantWeight, as_weight
from varshift.optim._gradient_powers import gradient_powers
from varshift.optim._hooks import checked

_DEAD = 1e-12  # a filter below this norm has no direction


class WeightRescaling:
    r"""Puts the filters that a batch norm follows back to unit norm, in place of weight decay.

    .. math:: w_o \leftarrow w_o / c_o, \qquad c_o = \|w_o\|_2 / t

    A batch norm takes the scale out of the filters before it: the network computes the same for
    :math:`c\,w_o`, and its gradient is smaller by :math:`1/c`. Without weight decay the norm grows and the
    effective learning rate :math:`\eta / \|w_o\|^2` (of SGD) fades; with it the norm shrinks and the rate
    grows. Rescaling pins it at :math:`\eta / t^2`. Expect to tune the learning rate anew: to reproduce the
    steady state of a run with weight decay, divide its rate by the square of the filters' norms there.

    Call `step` after the optimiser's step, or let `attach` hook it in. Call `rescale_` once before training.
    Give the rescaled weights no weight decay, which would be undone at once (`parameters` lists them); the
    others keep theirs.

    **What follows along**, so that nothing but the scale changes:

    * Momentum and other gradients that the optimiser remembers are multiplied by :math:`c_o` (squares by
      :math:`c_o^2`), for they belong to weights that were larger. For SGD this is exact: with the rate
      divided by :math:`c^2` as well, the directions stay on the path of the run without rescaling. For Adam
      it is exact up to its eps. ``scale_state=False`` leaves the memory as it is.
    * The layer's bias is divided by :math:`c_o` too. A batch norm right after it takes it out anyway, but
      with an activation in between weight and bias are only scale invariant together. ``rescale_bias=False``
      leaves it.
    * The running statistics of the norms that a weight is paired with (`find_scale_invariant` does that), so
      that eval mode stays right as well; their momentum would take many steps to follow a large :math:`c_o`.
      Without pairs, recalibrate after a rescaling with large factors.

    A filter whose norm is below 1e-12 has no direction and is left alone.

    **Several processes, mixed precision.** It is local and deterministic: with the same weights everywhere,
    nothing is exchanged. It acts on the weights as they are after ``scaler.step(optimizer)``, and when the
    scaler skips a step, on the same weights as before, which changes nothing. Parameters that are shared out
    among processes (DTensor) are refused.

    Args:
        weights: `ScaleInvariantWeight` as the finders return them, layers (linear, convolution, transposed
            convolution), pairs of layer and batch norm, or parameters, whose filters lie along axis 0. The
            last linear layer, biases and what a norm does not follow are not scale invariant: rescaling them
            changes the network. A whole network is therefore refused; `find_scale_invariant` finds its
            scale-invariant weights.
        target: The norm :math:`t` of a filter, 1 in the paper; for ``per="layer"`` that of the whole tensor.
            The default is 1 per filter, and for whole layers the root of the number of filters, which is the
            same on average.
        per: ``"filter"`` or ``"layer"``.
        interval: Every how many steps to rescale.
        scale_state: Whether the optimiser's memory of gradients follows.
        rescale_bias: Whether biases follow.
        fix_statistics: Whether the running statistics of paired norms follow.
        state_powers: For an optimiser that is not torch's: the degree of each entry of its state in the
            gradients, such as ``{"momentum": 1, "variance": 2}``.

    Raises:
        ValueError: If a weight is not one that can be rescaled, or a number is out of range.

    References:
        Z. Liu et al., "Weight Rescaling", 2022 (arXiv 2102.03497). Rescaling to unit norm after the update is
        the paper's. Its algorithm was not available in full: that it is done per filter, at every step, with
        the optimiser's memory, biases and running statistics following, is a reconstruction, and each is an
        argument here.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> rescaling = WeightRescaling([(model[0], model[1])])
        >>> factors = rescaling.rescale_()  # once before training
        >>> handle = rescaling.attach(optimizer)
        >>> model(torch.randn(4, 3, 9, 9)).square().mean().backward()
        >>> optimizer.step()
        >>> [f"{float(filter.norm()):.3f}" for filter in model[0].weight.detach()[:3]]
        ['1.000', '1.000', '1.000']
    """

    def __init__(
        self,
        weights: Iterable[Any],
        *,
        target: float | None = None,
        per: Granularity = "filter",
        interval: int = 1,
        scale_state: bool = True,
        rescale_bias: bool = True,
        fix_statistics: bool = True,
        state_powers: Mapping[str, int] | None = None,
    ) -> None:
        if per not in ("filter", "layer"):
            raise ValueError(f"per={per!r} must be 'filter' or 'layer'.")
        self.per: Granularity = per
        self.target = None if target is None else positive("target", target)
        self.interval = count("interval", interval, 1)
        self.scale_state = bool(scale_state)
        self.rescale_bias = bool(rescale_bias)
        self.fix_statistics = bool(fix_statistics)
        self.state_powers = None if state_powers is None else dict(state_powers)
        items = [weights] if isinstance(weights, (nn.Module, Tensor, ScaleInvariantWeight)) else weights
        self.weights = _merged([as_weight(item) for item in items])
        if not self.weights:
            raise ValueError("weights is empty: there is nothing to rescale.")
        self.steps = 0

    def parameters(self) -> Iterator[Tensor]:
        """The rescaled weights, as for a group without weight decay."""
        return (weight.weight for weight in self.weights)

    @torch.no_grad()
    def step(self, optimizer: Optimizer | None = None) -> None:
        """Counts a step and rescales when `interval` steps are full; call it after the optimiser's step.

        Args:
            optimizer: The optimiser whose memory follows; None where there is none to follow.
        """
        self.steps += 1
        if self.steps % self.interval == 0:
            self.rescale_(optimizer)

    @torch.no_grad()
    def rescale_(self, optimizer: Optimizer | None = None) -> list[Tensor]:
        """Rescales now, whatever the interval.

        Args:
            optimizer: The optimiser whose memory follows; None before training, when it is empty.

        Returns:
            For each of `weights` the factors that its filters were divided by, as a vector (of one for a
            whole layer).

        Raises:
            ValueError: If a weight is shared out among processes, or the optimiser's state is not understood.
        """
        powers: Mapping[str, int] = {}
        if optimizer is not None and self.scale_state:
            powers = gradient_powers(checked(optimizer), self.state_powers)
        followers = [self._followers(weight, optimizer, powers) for weight in self.weights]
        factors = []
        divided: list[Tensor] = []
        divisors: list[Tensor] = []
        for weight, memories in zip(self.weights, followers, strict=True):
            factor = self._factor(weight)
            factors.append(factor.flatten())
            if self.fix_statistics:
                self._follow_statistics(weight, factor.flatten())
            divided.append(weight.by_filter(weight.weight.detach(), self.per)[0])
            divisors.append(factor)
            if self.rescale_bias and weight.bias is not None:
                divided.append(weight.bias.detach())
                divisors.append(factor.flatten())
            for memory, power in memories:
                divided.append(memory)
                divisors.append((factor if memory.dim() > 1 else factor.flatten()).pow(-power))
            if factor.device.type == "cpu":  # at once, while the weight is in the cache
                _divide(divided, divisors)
        _divide(divided, divisors)
        return factors

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Rescales after every step of the optimiser (or every `interval`); ``handle.remove()`` ends it.

        An optimiser loses its hooks when it is copied or pickled.

        Raises:
            ValueError: If the optimiser's state is not understood, see `state_powers`.
        """
        if self.scale_state:
            gradient_powers(checked(optimizer), self.state_powers)
        return checked(optimizer).register_step_post_hook(
            lambda optimizer, args, kwargs: self.step(optimizer)
        )

    def state_dict(self) -> dict[str, Any]:
        """The number of steps so far, on which the interval depends."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the number of steps."""
        self.steps = count("steps", state["steps"], 0)

    def _factor(self, weight: ScaleInvariantWeight) -> Tensor:
        if hasattr(weight.weight, "device_mesh"):
            raise ValueError(
                f"weight {weight.name!r} is shared out among processes (DTensor): rescale before sharding, "
                "or train data parallel."
            )
        norm = weight.norm(self.per)
        target = self.target
        if target is None:
            target = 1.0 if self.per == "filter" else float(weight.units) ** 0.5
        return torch.where(norm > _DEAD, norm / target, 1.0)

    def _followers(
        self, weight: ScaleInvariantWeight, optimizer: Any, powers: Mapping[str, int]
    ) -> list[tuple[Tensor, int]]:
        """The entries of the optimiser's state that follow a weight and its bias, with their degrees."""
        found = []
        bias = weight.bias if self.rescale_bias else None
        for parameter in (weight.weight,) if bias is None else (weight.weight, bias):
            for name, power in powers.items():
                memory = optimizer.state.get(parameter, {}).get(name)
                if power == 0 or not isinstance(memory, Tensor):
                    continue
                if memory.shape != parameter.shape:
                    raise ValueError(
                        f"the optimiser's {name!r} has shape {tuple(memory.shape)} for a weight of shape "
                        f"{tuple(parameter.shape)}: it cannot follow. Leave it out of state_powers, or set "
                        "scale_state=False."
                    )
                found.append((weight.by_filter(memory, self.per)[0] if memory.dim() > 1 else memory, power))
        return found

    def _follow_statistics(self, weight: ScaleInvariantWeight, factor: Tensor) -> None:
        for norm, start in weight.norms:
            mean, variance = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
            if mean is None or variance is None:
                continue
            mean, variance = (part.narrow(0, start, weight.units) for part in (mean, variance))
            bias = weight.bias
            if bias is not None and not self.rescale_bias:
                mean.sub_(bias).div_(factor).add_(bias)  # only the part that came through the weight shrinks
            else:
                mean.div_(factor)
            variance.div_(factor.square())

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(weights={len(self.weights)}, target={self.target}, per={self.per!r}, "
            f"interval={self.interval}, scale_state={self.scale_state}, rescale_bias={self.rescale_bias}, "
            f"fix_statistics={self.fix_statistics})"
        )


def _divide(divided: list[Tensor], divisors: list[Tensor]) -> None:
    if divided:
        torch._foreach_div_(divided, divisors)  # pyright: ignore[reportPrivateImportUsage]
    divided.clear()
    divisors.clear()


def _merged(weights: list[ScaleInvariantWeight]) -> list[ScaleInvariantWeight]:
    """Each tensor once, with the norms of all its uses."""
    merged: dict[int, ScaleInvariantWeight] = {}
    for weight in weights:
        known = merged.get(id(weight.weight))
        if known is not None:
            norms = tuple(dict.fromkeys((*known.norms, *weight.norms)))
            weight = ScaleInvariantWeight(known.name, known.module, norms)
        merged[id(weight.weight)] = weight
    return list(merged.values())
