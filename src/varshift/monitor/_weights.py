"""Whether the weights moved since the last step, told from their versions and a few of their values."""

from __future__ import annotations

import copy
import inspect
import zlib

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_PROBES = 8  # parameters whose values are looked at where versions do not tell, spread over the network
_PROBED = 256  # at most so many elements of each


class Weights:
    """Watches the parameters of a network; nothing of them is written.

    Args:
        network: The network.
        optimizer: What trains it, where that is known.
        every_parameter: Whether to look at those that need no gradient, too.
    """

    def __init__(
        self, network: nn.Module, optimizer: Optimizer | None = None, *, every_parameter: bool = False
    ) -> None:
        self._named = dict(network.named_parameters())
        self._own_writes = None if optimizer is None else writes_per_step(optimizer)
        trained = [p for p in self._named.values() if (p.requires_grad or every_parameter) and p.numel() > 0]
        stride = max(len(trained) // _PROBES, 1)
        self._trained, self._probes = trained, trained[::stride]
        self._versions = {name: parameter._version for name, parameter in self._named.items()}
        # Only of use to code that writes to `parameter.data`, which leaves no trace in the versions.
        self._values: list[Tensor] | None = [_probe(parameter) for parameter in self._probes]
        self._last = [parameter._version for parameter in self._trained]
        self._writes = 0

    def moved(self) -> bool:
        """Whether they moved since this was asked last."""
        versions = [parameter._version for parameter in self._trained]
        pairs = zip(versions, self._last, strict=True)
        self._writes = max((now - before for now, before in pairs), default=0)
        self._last = versions
        if self._writes > 0:
            self._values = None
            return True
        before, values = self._values, [_probe(parameter) for parameter in self._probes]
        moved = before is not None and not all(map(torch.equal, values, before))
        self._values = values
        return moved

    def digest(self) -> int:
        """A number that two networks have in common where their weights are the same to the bit.

        Sharded weights are left out: every rank holds others.
        """
        whole = [parameter for parameter in self._probes if not hasattr(parameter, "to_local")]
        return zlib.crc32(b"".join(_bytes(_probe(parameter)) for parameter in whole))

    def unmoved(self) -> frozenset[str]:
        """The parameters that were never written since the watch began, where versions tell.

        Code that writes to ``parameter.data`` leaves no trace in the versions: then nothing is known.
        """
        still = {name for name, p in self._named.items() if p._version == self._versions[name]}
        return frozenset(still) if len(still) < len(self._named) else frozenset()

    def frozen(self, *, moves: int) -> frozenset[str]:
        """Names of the parameters that training leaves as they are.

        Args:
            moves: How often the weights moved so far: what stayed where it is after a few is not trained.
        """
        names = {name for name, parameter in self._named.items() if not parameter.requires_grad}
        return frozenset(names | self.unmoved()) if moves >= 3 else frozenset(names)

    def rewritten(self) -> bool | None:
        """Whether the last move had more writes than the optimiser makes; None where that is not known."""
        if self._own_writes is None or not self._writes:
            return None
        return self._writes > self._own_writes

    def backwards(self) -> int | None:
        """The most backward passes that the gradients can be sums of; None without gradients.

        A gradient is written once for each pass after the first, and for each clipping or scaling. Some are
        written for each use of the parameter in one pass, too: the least written one counts.
        """
        versions = [p.grad._version for p in self._probes if p.grad is not None]
        return min(versions) + 1 if versions else None


def writes_per_step(optimizer: Optimizer) -> int | None:
    """How often one step of an optimiser of torch's writes to a parameter, tried on a tiny one of its own.

    One that is wrapped in another counts; None for optimisers that torch does not have: to run them might
    leave a trace.
    """
    inner = [optimizer, *(value for value in vars(optimizer).values() if isinstance(value, Optimizer))]
    own = next((one for one in inner if type(one).__module__.startswith("torch.optim.")), None)
    if own is None or not own.param_groups:
        return None
    group = {key: value for key, value in own.param_groups[0].items() if key != "params"}
    parameter = torch.ones(4, requires_grad=True)
    step = inspect.unwrap(type(own).step)  # without the hooks that are called around every step
    counts = []
    try:
        trial = type(own)([{"params": [parameter]}], lr=0.0)  # type: ignore[call-arg]
        trial.param_groups[0].update(copy.deepcopy(group))
        for _ in range(3):
            parameter.grad = torch.ones(4)
            before = parameter._version
            with torch.no_grad():
                step(trial)
            counts.append(parameter._version - before)
    except Exception:  # an optimiser that needs a closure, among others
        return None
    return counts[-1] if counts[-1] == counts[-2] else None


def _probe(parameter: Tensor) -> Tensor:
    # Of a sharded one this rank's part: to index all of it would be a collective operation.
    local = getattr(parameter, "to_local", lambda: parameter)()
    return local.detach().reshape(-1)[:_PROBED].to("cpu", copy=True)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.view(torch.uint8).numpy().tobytes()
