"""What an edited network must still be able to do, each a function that raises where it cannot."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from _survey_rows import first_tensor
from varshift.fixes import prove
from varshift.flow import Capture, capture

_GRADIENTS = 1e-6  # of the largest gradient
_OUTPUTS = 1e-5
_KERNELS = 1e-3  # of outputs: compiled kernels sum in another order


class Failed(Exception):  # noqa: N818 - what a cell shows, not an error of the battery
    """A property does not hold."""


@dataclass
class Trial:
    """A network at its trial.

    Attributes:
        network: The edited network, or the unedited one for comparison.
        original: The unedited network.
        inputs: One batch.
    """

    network: nn.Module
    original: nn.Module
    inputs: tuple[Tensor, ...]
    _capture: Capture | None = None

    def captured(self) -> Capture:
        """The capture of `network`."""
        if self._capture is None:
            self._capture = capture(self.network, self.example)
        return self._capture

    @property
    def example(self) -> Any:
        """The batch, as `capture` takes it."""
        return self.inputs if len(self.inputs) > 1 else self.inputs[0]


def keys(trial: Trial) -> None:
    """The same keys in the same order, and weights that load both ways."""
    names = list(trial.network.state_dict()), list(trial.original.state_dict())
    _require(names[0] == names[1], "other keys, or in another order")
    parameters = [[name for name, _ in net.named_parameters()] for net in (trial.network, trial.original)]
    _require(parameters[0] == parameters[1], "other names of parameters")
    trial.network.load_state_dict(trial.original.state_dict(), strict=True)
    trial.original.load_state_dict(trial.network.state_dict(), strict=True)


def copied(trial: Trial) -> None:
    """A deep copy makes the same noise."""
    _same_noise(trial, copy.deepcopy(trial.network))


def pickled(trial: Trial) -> None:
    """So does one from a pickle."""
    _same_noise(trial, pickle.loads(pickle.dumps(trial.network)))


def saved(trial: Trial) -> None:
    """So does one that was saved and loaded as a whole."""
    file = io.BytesIO()
    torch.save(trial.network, file)
    file.seek(0)
    _same_noise(trial, torch.load(file, weights_only=False))


def evaluated(trial: Trial) -> None:
    """In eval mode it computes what it did."""
    with torch.no_grad():
        outputs = [_output(net.eval(), trial.inputs) for net in (trial.original, trial.network)]
        again = _output(trial.original, trial.inputs)
    _require(bool(outputs[1].isfinite().all()), "outputs are not finite")
    if torch.equal(outputs[0], again):  # noise that acts in evaluation has no two equal outputs
        _close(outputs[1], outputs[0], _OUTPUTS, "outputs")


def exported(trial: Trial) -> None:
    """It can be exported in both modes, and the exported program computes the same."""
    for training in (True, False):
        network = trial.network.train(training)
        program = torch.export.export(network, trial.inputs, strict=False)
        if not training:
            with torch.no_grad():
                outputs = [_output(net, trial.inputs) for net in (network, program.module())]
                again = _output(network, trial.inputs)
            if torch.equal(outputs[0], again):
                _close(outputs[1], outputs[0], _OUTPUTS, "outputs of the exported program")


def checkpointed(trial: Trial, reentrant: bool) -> None:
    """Activation checkpointing gives the gradients that it gives without."""
    plain = _gradients(trial.network, trial.inputs, None)
    again = _gradients(trial.network, trial.inputs, reentrant)
    _require(plain.keys() == again.keys(), "other parameters have gradients")
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    for name, gradient in plain.items():
        error = float((again[name] - gradient).abs().max())
        _require(error <= _GRADIENTS * largest, f"gradient of {name} off by {error / largest:.2g}")


def stepped(trial: Trial) -> None:
    """Two training steps have finite losses and move the weights; the same weights get gradients."""
    with_gradient = set(_gradients(trial.original, trial.inputs, None))
    network = trial.network.train()
    _require(set(_gradients(network, trial.inputs, None)) == with_gradient, "other weights get gradients")
    before = [parameter.detach().clone() for parameter in network.parameters()]
    losses = train(network, trial.inputs)
    _require(all(map(math.isfinite, losses)), f"losses {losses}")
    moved = any(not torch.equal(one, other) for one, other in zip(before, network.parameters(), strict=True))
    _require(moved, "no weight has changed")


def compiled(trial: Trial) -> None:
    """A training step of the compiled network is one graph; in eval mode it computes the same."""
    torch._dynamo.reset()
    network = torch.compile(trial.network, fullgraph=True)
    losses = train(network.train(), trial.inputs, steps=1)
    _require(all(map(math.isfinite, losses)), f"losses {losses}")
    with torch.no_grad():
        outputs = [_output(net.eval(), trial.inputs) for net in (trial.network, network)]
        again = _output(trial.network, trial.inputs)
    if torch.equal(outputs[0], again):
        _close(outputs[1], outputs[0], _KERNELS, "outputs of the compiled network")


CELLS: dict[str, Callable[[Trial], None]] = {
    "keys and loading": keys,
    "deepcopy": copied,
    "pickle": pickled,
    "torch.save": saved,
    "eval": evaluated,
    "export": exported,
    "checkpoint": lambda trial: checkpointed(trial, False),
    "checkpoint, reentrant": lambda trial: checkpointed(trial, True),
    "two steps": stepped,
}


def train(network: nn.Module, inputs: tuple[Tensor, ...], steps: int = 2) -> list[float]:
    """The losses of a few training steps."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = _loss(_output(network, inputs))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def judged(cell: Callable[[Trial], None], edited: Trial, unedited: Callable[[], Trial]) -> list[str]:
    """What a cell shows.

    Returns:
        ``["holds"]``, ``["fails", reason]``, or ``["unedited", reason]`` where the unedited network cannot
        do it either.
    """
    reason = _reason(cell, edited)
    if reason is None:
        return ["holds"]
    before = _reason(cell, unedited())
    return ["fails", reason] if before is None else ["unedited", before]


def _reason(cell: Callable[[Trial], None], trial: Trial) -> str | None:
    try:
        cell(trial)
    except Exception as error:  # whatever a network or a compiler refuses with
        first = str(error).strip().splitlines()
        return f"{type(error).__name__}: {first[0] if first else ''}"[:300]
    return None


def _same_noise(trial: Trial, network: nn.Module) -> None:
    proof = prove(trial.captured(), capture(network, trial.example), ())
    _require(proof.exact, proof.reason)


def _gradients(network: nn.Module, inputs: tuple[Tensor, ...], reentrant: bool | None) -> dict[str, Tensor]:
    """Gradients of a training pass with seed 0; with activation checkpointing unless `reentrant` is None."""
    network.train()
    network.zero_grad()
    torch.manual_seed(0)
    anchor = torch.zeros((), requires_grad=True)  # a reentrant checkpoint needs an input with a gradient

    def run(_: Tensor, *tensors: Tensor) -> Tensor:
        return _output(network, tensors)

    if reentrant is None:
        output = run(anchor, *inputs)
    else:
        output: Any = checkpoint(run, anchor, *inputs, use_reentrant=reentrant)
    _loss(output).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }


def _output(network: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Tensor:
    return first_tensor(network(*inputs))


def _loss(output: Tensor) -> Tensor:
    """Of a layer-normed output the mean of squares is a constant: its entries are weighted."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    return (output * weights).mean() + output.square().mean()


def _close(value: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    scale = max(float(expected.abs().max()), 1e-12)
    error = float((value - expected).abs().max()) / scale
    _require(error <= tolerance, f"{what} off by {error:.2g}")


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise Failed(reason)
