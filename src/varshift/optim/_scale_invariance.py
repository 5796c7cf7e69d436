"""Which weights of a network are scale invariant: measured on a copy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from varshift._arguments import positive
from varshift.optim._filters import Granularity, ScaleInvariantWeight, is_weight_layer
from varshift.optim._selection import unwrapped

_TINY_EPS = 1e-20


def find_scale_invariant(
    model: nn.Module,
    *inputs: Any,
    per: Granularity = "filter",
    tolerance: float = 1e-6,
    forward: Callable[[nn.Module], Any] | None = None,
) -> list[ScaleInvariantWeight]:
    r"""Finds by measurement the weights whose scale does not change what a network computes in training.

    On a copy in float64 whose eps are tiny and whose parameters are shaken (so that a branch that starts at
    zero does not seem invariant), it takes one backward pass: a weight is a candidate when
    :math:`\langle w_o, \nabla_{w_o}\rangle = 0` for all its filters (Euler's rule). Then it scales the
    filters of all candidates by random factors at once, and falls back to one at a time if that moves the
    output. The batch norms that read a weight's output, behind a concatenation too, are those whose batch
    variances change by the squares of its factors.

    Layer and bias are scaled together, as `WeightRescaling` does it. The model itself is not touched.

    Args:
        model: The network.
        *inputs: An example of its inputs, of a few samples: a batch norm needs at least two elements per
            channel, and statistics of too few say little.
        per: ``"filter"`` asks whether each filter has a scale of its own (in front of a batch norm);
            ``"layer"`` only whether the weight has one as a whole (in front of a group or layer norm too).
        tolerance: Largest relative change of the output. An eps that is written into a function and cannot
            be made tiny counts as a change.
        forward: A function that calls the network with an example batch, in place of `inputs`.

    Returns:
        The weights in the order of modules, each paired with its batch norms.

    Raises:
        ValueError: If there are neither inputs nor `forward`, or the output has no numbers.

    References:
        Scale invariance and its use: arXiv 2102.03497. This way of testing for it is varshift's own.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.one, self.norm, self.two = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        ...     def forward(self, x):
        ...         return x + self.two(self.norm(self.one(x)).relu())
        >>> model = nn.Sequential(Block(), nn.BatchNorm1d(6))
        >>> [weight.name for weight in find_scale_invariant(model, torch.randn(16, 6))]
        ['0.one']
    """
    if per not in ("filter", "layer"):
        raise ValueError(f"per={per!r} must be 'filter' or 'layer'.")
    tolerance = positive("tolerance", tolerance)
    if not inputs and forward is None:
        raise ValueError(
            "inputs is empty and forward is None: give an example batch, or a function that calls the model."
        )
    model = unwrapped(model)
    probe = _Probe(model, inputs, forward)
    names = probe.candidates(per, tolerance)
    factors = {name: probe.random_factor(name, per) for name in names}
    if names and probe.change(factors, per)[0] > tolerance:
        factors = {n: f for n, f in factors.items() if probe.change({n: f}, per)[0] <= tolerance}
    norms = probe.change(factors, per)[1] if factors else {}
    modules = dict(model.named_modules())
    return [
        ScaleInvariantWeight(
            name, modules[name], tuple((modules[norm], start) for norm, start in norms.get(name, ()))
        )
        for name in factors
    ]


class _Probe:
    """A copy of a network in float64 that can be run with scaled weights."""

    def __init__(
        self, model: nn.Module, inputs: tuple[Any, ...], forward: Callable[[nn.Module], Any] | None
    ) -> None:
        self.model = copy.deepcopy(model).double().train()
        self.inputs = _double(inputs)
        self.forward = forward
        self.generator = torch.Generator().manual_seed(0)
        for module in self.model.modules():
            if isinstance(getattr(module, "eps", None), float):
                module.eps = _TINY_EPS  # type: ignore[assignment]
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.requires_grad_(True)
                size = parameter.abs().mean() if parameter.numel() else 1.0
                noise = self._random(parameter).mul_(2).sub_(1)
                parameter.add_(noise.mul_(0.2 * size if size > 0 else 0.2))
        self.layers = {}
        for name, module in self.model.named_modules():
            if is_weight_layer(module) and module.weight.numel():
                self.layers[name] = ScaleInvariantWeight(name, module)
        self.variances: dict[str, Tensor | None] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, _BatchNorm) and module.running_var is not None:
                module.register_forward_pre_hook(self._reader(name))

    def _random(self, like: Tensor) -> Tensor:
        values = torch.rand(like.shape, generator=self.generator, dtype=torch.float64)
        return values.to(like.device)

    def _reader(self, name: str) -> Callable[[nn.Module, Any], None]:
        def read(module: nn.Module, args: Any) -> None:
            values = args[0].detach()
            axes = [axis for axis in range(values.dim()) if axis != 1]
            # A norm that runs several times has no one signal.
            self.variances[name] = None if name in self.variances else values.var(axes, correction=0)

        return read

    def run(self) -> Tensor:
        """All outputs as one vector, with the same noise each time."""
        self.variances.clear()
        devices = {parameter.device for parameter in self.model.parameters()}
        cuda = [device for device in devices if device.type == "cuda"]
        with torch.random.fork_rng(cuda):
            torch.manual_seed(0)
            model: Any = self.model
            out = self.forward(model) if self.forward is not None else model(*self.inputs)
        parts = [part.reshape(-1).double() for part in _tensors(out)]
        if not parts:
            raise ValueError(
                f"the network's output is a {type(out).__name__} without numbers: give forward=."
            )
        return torch.cat([part.to(parts[0].device) for part in parts])

    def candidates(self, per: Granularity, tolerance: float) -> list[str]:
        """The layers for which Euler's rule holds in every filter."""
        with torch.enable_grad():
            out = self.run()
        if not out.requires_grad:
            raise ValueError(
                "the network's output does not depend on its parameters: nothing can be measured."
            )
        out.backward(self._random(out).sub_(0.5))
        found = []
        for name, layer in self.layers.items():
            grad = layer.weight.grad
            if grad is None or not bool(grad.any()):
                continue  # it was not used: nothing is known about it
            weights, axes = layer.by_filter(layer.weight.detach(), per)
            grads, _ = layer.by_filter(grad, per)
            radial = (weights * grads).sum(axes).flatten()
            size = (weights.square().sum(axes) * grads.square().sum(axes)).sqrt().flatten()
            if layer.bias is not None and layer.bias.grad is not None:
                part = layer.bias.detach() * layer.bias.grad
                radial = radial + (part if per == "filter" else part.sum())
            if bool((radial.abs() <= max(tolerance, 1e-9) * size.max()).all()):
                found.append(name)
        return found

    def random_factor(self, name: str, per: Granularity) -> Tensor:
        """Random factors between 0.3 and 3.3, one per filter or one for the layer."""
        return self._random(self.layers[name].norm(per)).mul_(3.0).add_(0.3)

    @torch.no_grad()
    def change(
        self, factors: dict[str, Tensor], per: Granularity
    ) -> tuple[float, dict[str, list[tuple[str, int]]]]:
        """How far the output moves when weights are scaled, and which norms see which weight's factors."""
        before, variances = self.run(), dict(self.variances)
        kept = {}
        for name, factor in factors.items():
            layer = self.layers[name]
            kept[name] = (layer.weight.clone(), None if layer.bias is None else layer.bias.clone())
            layer.by_filter(layer.weight, per)[0].mul_(factor)
            if layer.bias is not None:
                layer.bias.mul_(factor.flatten())
        after, scaled = self.run(), dict(self.variances)
        for name, (weight, bias) in kept.items():
            self.layers[name].weight.copy_(weight)
            if bias is not None:
                self.layers[name].bias.copy_(bias)  # type: ignore[union-attr]
        moved = float((after - before).abs().max() / before.abs().max().clamp(min=1e-300))
        found: dict[str, list[tuple[str, int]]] = {}
        for norm, variance in variances.items():
            other = scaled.get(norm)
            if variance is None or other is None:
                continue
            ratios = other / variance
            for name, factor in factors.items():
                start = _where(ratios, factor.flatten().square().expand(self.layers[name].units))
                if start is not None:
                    found.setdefault(name, []).append((norm, start))
        return (moved if moved == moved else float("inf")), found


def _where(ratios: Tensor, squares: Tensor) -> int | None:
    """The first place where ratios of variances equal the squared factors; dead channels fit anything."""
    units = len(squares)
    if units > len(ratios):
        return None
    windows = ratios.unfold(0, units, 1)
    known = windows.isfinite()
    fits = ((windows / squares - 1).abs() < 1e-6) | ~known
    places = (fits.all(1) & known.any(1)).nonzero().flatten()
    return int(places[0]) if len(places) else None


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _double(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_double(item) for item in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
