"""Training with weight rescaling, and what the norms of filters do meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from varshift.optim import ScaleInvariantWeight, WeightRescaling, find_scale_invariant
from varshift.trials import Measurements, Trial, Workbench
from varshift_lab.data import Images
from varshift_lab.training import Part, TrainingSettings, TrainingTrial, Treatment

_SAMPLES = 16  # enough for statistics of each channel
_WATCH_EVERY = 8  # steps between two looks at how far the filters turn in one


@dataclass(frozen=True)
class RescalingTreatment(Treatment):
    """Weight rescaling of all scale-invariant filters, or nothing but a look at their norms.

    After every epoch it notes ``norm``, the median norm of these filters, and ``angle``, the mean angle (in
    radians) by which they turned in a step, of every eighth step of the epoch.

    Attributes:
        shape: Channels, height and width of an input; which weights are scale invariant is found with one.
        interval: Steps between two rescalings; 0 never rescales.
        scale_state: Whether the optimiser's momentum follows.
    """

    shape: tuple[int, int, int]
    interval: int = 1
    scale_state: bool = True

    def prepare(self, model: nn.Module) -> None:
        """Brings filters to unit norm for the first time."""
        if self.interval:
            WeightRescaling(self._weights(model)).rescale_()

    def attach(self, model: nn.Module, optimizer: Optimizer, settings: TrainingSettings) -> Sequence[Part]:
        """Rescales after the optimiser's steps, and exempts what is rescaled from decay."""
        weights = self._weights(model)
        _WATCHES[model] = _Watch(weights, optimizer)
        if not self.interval:
            return ()
        rescaling = WeightRescaling(weights, interval=self.interval, scale_state=self.scale_state)
        rescaled = {id(weight) for weight in rescaling.parameters()}
        without = []
        for group in optimizer.param_groups:
            without += [one for one in group["params"] if id(one) in rescaled]
            group["params"] = [one for one in group["params"] if id(one) not in rescaled]
        optimizer.add_param_group({"params": without, "weight_decay": 0.0})
        rescaling.attach(optimizer)
        return (rescaling,)

    def note(self, model: nn.Module, images: Images, state: Any) -> Mapping[str, float]:
        """Norms and angles."""
        norms = torch.cat([weight.norm("filter").flatten() for weight in self._weights(model)])
        return {"norm": float(norms.median()), "angle": _WATCHES[model].mean()}

    def _weights(self, model: nn.Module) -> list[ScaleInvariantWeight]:
        found = _FOUND.get(model)
        if found is None:
            device = next(model.parameters()).device
            draws = torch.Generator().manual_seed(0)
            inputs = torch.randn(_SAMPLES, *self.shape, generator=draws).to(device)
            found = _FOUND[model] = find_scale_invariant(model, inputs)
        return found


_FOUND: WeakKeyDictionary[nn.Module, list[ScaleInvariantWeight]] = WeakKeyDictionary()


class _Watch:
    """How far filters turn in a step; it looks at every eighth one, beginning with the first."""

    def __init__(self, weights: list[ScaleInvariantWeight], optimizer: Optimizer) -> None:
        self._weights = weights
        self._steps = 0
        self._before: list[Tensor] = []
        self._angles: list[Tensor] = []
        optimizer.register_step_pre_hook(self._keep)
        optimizer.register_step_post_hook(self._compare)

    def _keep(self, *_: Any) -> None:
        self._before = []
        if self._steps % _WATCH_EVERY == 0:
            self._before = [weight.weight.detach().flatten(1).clone() for weight in self._weights]
        self._steps += 1

    @torch.no_grad()
    def _compare(self, *_: Any) -> None:
        if self._before:
            pairs = zip(self._weights, self._before, strict=True)
            self._angles.append(torch.cat([_angles(w.weight.flatten(1), b) for w, b in pairs]).mean())

    def mean(self) -> float:
        """Mean since it was asked last."""
        angles, self._angles, self._steps = self._angles, [], 0
        return float(torch.stack(angles).mean()) if angles else 0.0


_WATCHES: WeakKeyDictionary[nn.Module, _Watch] = WeakKeyDictionary()


def _angles(one: Tensor, other: Tensor) -> Tensor:
    """Angle between rows; by the chord, which is exact for small angles, where the cosine rounds to 1."""
    one, other = (rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12) for rows in (one, other))
    return 2 * torch.asin(((one - other).norm(dim=1) / 2).clamp(max=1))


@dataclass(frozen=True)
class MatchedRateTrial(Trial):
    """Weight rescaling at the learning rate that turns filters as fast as weight decay did in the end.

    It trains with weight decay first. There the rate that counts is ``rate / r^2``, with the norm r of the
    filters; under rescaling r is 1, so that the rate is divided by the square of the median norm.

    Attributes:
        decayed: The training with weight decay, whose treatment notes ``norm``.
        rescaled: The training with rescaling; its rate is replaced.
    """

    decayed: TrainingTrial
    rescaled: TrainingTrial

    @property
    def title(self) -> str:
        """As that of the second training."""
        return f"matched rate: {self.rescaled.title}"

    def run(self, workbench: Workbench) -> Measurements:
        """Both trainings, each in a folder of its own; measurements of the second, and its rate."""
        first = replace(self.decayed, seed=self.seed).run(_within(workbench, "decayed"))
        norm = first["norm"]
        if not isinstance(norm, float):
            raise TypeError("decayed must have a treatment that notes a norm.")
        rate = self.rescaled.settings.learning_rate / norm**2
        second = replace(
            self.rescaled, seed=self.seed, settings=replace(self.rescaled.settings, learning_rate=rate)
        )
        found = second.run(_within(workbench, "rescaled"))
        work = {name: found[name] + first[name] for name in ("seconds", "pflop")}  # type: ignore[operator]
        return {**found, **work, "rate": rate, "decayed_norm": norm}


def _within(workbench: Workbench, name: str) -> Workbench:
    return workbench if workbench.folder is None else replace(workbench, folder=workbench.folder / name)
