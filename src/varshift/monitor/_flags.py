"""Training flags and rates of the modules that matter, read after each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from varshift.evidence import RateChange
from varshift.model import Norm

_RATES = ("p", "drop_prob")


@dataclass(frozen=True, slots=True)
class NoiseModule:
    """A module that makes noise.

    Attributes:
        name: Its path.
        module: The module.
        rate: Name of the attribute that holds its rate.
        part: Path of the nearest module around it that holds weights.
    """

    name: str
    module: nn.Module
    rate: str
    part: str


def noise_modules(network: nn.Module) -> list[NoiseModule]:
    """The modules without children and tensors that hold a rate: dropout, drop path, drop block."""
    modules = dict(network.named_modules())
    return [
        NoiseModule(name, module, rate, _part(modules, name))
        for name, module in modules.items()
        if (rate := _rate_of(module)) is not None
    ]


def _rate_of(module: nn.Module) -> str | None:
    if any(module._modules.values()) or module._parameters or module._buffers:
        return None
    if not isinstance(module, _DropoutNd) and "drop" not in type(module).__name__.lower():
        return None
    return next((name for name in _RATES if _is_rate(getattr(module, name, None))), None)


def _is_rate(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _part(modules: dict[str, nn.Module], name: str) -> str:
    while name:
        name = name.rpartition(".")[0]
        if next(modules[name].parameters(), None) is not None:
            return name
    return ""


class Flags:
    """Training flags of norms and noise, and rates of noise, as they are after a step.

    Args:
        network: The network.
        norms: Its norms.
    """

    def __init__(self, network: nn.Module, norms: Sequence[Norm]) -> None:
        self._network = network
        self._norms = [norm.module for norm in norms]
        self.noise = noise_modules(network)
        self._rates = [self._rate(noise) for noise in self.noise]
        self.read()

    def read(self) -> None:
        """Reads them."""
        self.root = self._network.training
        self.norms = [module.training for module in self._norms]
        self.noisy = [noise.module.training for noise in self.noise]

    @property
    def asleep(self) -> bool:
        """Whether the network and all that behaves differently in training are in evaluation mode."""
        return bool(self.norms or self.noisy) and not (self.root or any(self.norms) or any(self.noisy))

    def changed_rates(self, step: int) -> Iterator[RateChange]:
        """The rates that are others than when this was asked last."""
        for number, noise in enumerate(self.noise):
            before, now = self._rates[number], self._rate(noise)
            if now != before:
                self._rates[number] = now
                yield RateChange(noise.name, step, before, now)

    def acts(self, number: int) -> bool:
        """Whether a noise module would act in training mode at all."""
        return self._rates[number] > 0

    @staticmethod
    def _rate(noise: NoiseModule) -> float:
        value = getattr(noise.module, noise.rate)
        return float(value) if _is_rate(value) else 0.0
