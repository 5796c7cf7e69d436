"""What happened during training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from varshift.trials import Measurements


@dataclass(frozen=True, slots=True)
class Probe:
    """One look at a network between two epochs.

    Attributes:
        epoch: Epochs done by then.
        shift: Of each norm, in the order of the modules: ``max(ratio, 1 / ratio)`` of the variance of its
            input in evaluation over its running variance.
        train_mode_error: Share of the training images, in %, that it gets wrong in ``train()``.
        eval_mode_error: The same images in ``eval()``.
    """

    epoch: int
    shift: list[float]
    train_mode_error: float
    eval_mode_error: float

    def state_dict(self) -> dict[str, Any]:
        """Plain data of it."""
        return asdict(self)


@dataclass(slots=True)
class History:
    """One number for each epoch, as the optimiser saw it (noise on, batch statistics, weights on the move).

    Attributes:
        loss: Mean loss over samples.
        error: Share of samples classified wrongly, in %.
        rate: Learning rate of the last step.
        seconds: How long it took, probes and checkpoints left out.
        probes: What the probes saw.
        pflop: Floating-point operations of one epoch's steps, in units of 1e15; multiplications and additions
            of matrix products and convolutions count, nothing else.
        notes: What the treatment noted, by name.
    """

    loss: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    pflop: float = 0.0
    notes: dict[str, list[float]] = field(default_factory=dict)

    def add(self, loss: float, error: float, rate: float, seconds: float) -> None:
        """Adds an epoch."""
        self.loss.append(loss)
        self.error.append(error)
        self.rate.append(rate)
        self.seconds.append(seconds)

    @property
    def epochs(self) -> int:
        """Epochs that are done."""
        return len(self.loss)

    def measurements(self) -> Measurements:
        """All of it by name; the mean loss over all epochs says how fast they went, the last one how far."""
        found: dict[str, Any] = {
            "train_loss_history": self.loss,
            "train_error_history": self.error,
            "train_loss_mean": sum(self.loss) / max(len(self.loss), 1),
            "train_loss_last": self.loss[-1] if self.loss else 0.0,
            "learning_rate_history": self.rate,
            "seconds": sum(self.seconds),
            "pflop": self.pflop * self.epochs,
        }
        for name, values in self.notes.items():
            found |= {name: values[-1], f"{name}_history": values}
        if self.probes:
            found |= {
                "probe_epochs": [probe.epoch for probe in self.probes],
                "probe_shift": [probe.shift for probe in self.probes],
                "probe_train_mode_error": [probe.train_mode_error for probe in self.probes],
                "probe_eval_mode_error": [probe.eval_mode_error for probe in self.probes],
            }
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain data of it."""
        return asdict(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        for name, value in state_dict.items():
            setattr(self, name, [Probe(**probe) for probe in value] if name == "probes" else value)
