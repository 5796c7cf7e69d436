"""What a recalibration does to the loss, on batches that its statistics have not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from varshift._errors import VarshiftError, strict
from varshift.model import Call, Forward, Norm, Shadow, seed_all, tensors, write
from varshift.probe._loss import Loss, batch_loss, correct
from varshift.probe._pass import run_pass
from varshift.probe._states import set_noise
from varshift.probe._tap import Statistics, Tap

# Batches that are held back: every third at most, so that the other statistics stay good ones; sixteen give
# an error of a quarter of what batches differ by.
MOST = 16
_STRIDE, _STRIDE_UNKNOWN = 3, 5
_BYTES = 2**29  # that held-back batches may take
# A rise of the loss counts beyond two of its standard errors and a twentieth of the loss, from which on a
# finding is worth a warning. Fewer than four batches tell little about their own spread: for these it takes
# four errors and a fifth. The error of a single one is not known: the loss has to double.
_FEW = 4
_ERRORS, _SHARE = 2.0, 0.05
_ERRORS_FEW, _SHARE_FEW = 4.0, 0.2
_SHARE_ALONE = 1.0
# A fall of any size counts beyond these, as one in two hundred would be beyond by chance (Student's t).
_ENOUGH = 8
_ERRORS_FALL, _ERRORS_FALL_FEW = 3.0, 6.0
_NATS = 0.01  # of a cross-entropy: a network that knows its data by heart has a loss near zero


@dataclass(frozen=True, slots=True)
class Effect:
    """Loss of the deployed network before and after a recalibration, on batches that were held back from it.

    The statistics that `after` is measured with come from the other batches alone. Those that a recalibration
    leaves in the model come from all of them, and are a little better.

    Attributes:
        before: Mean loss in `eval` with the statistics as found.
        after: Mean loss with statistics re-estimated on the batches that were not held back.
        stderr: Standard error of the difference over batches; None with a single one.
        batches: Number of batches that were held back, on all processes.
        samples: Number of their samples.
        scale: The smallest change of the loss that anybody would act on, whatever the loss is.
    """

    before: float
    after: float
    stderr: float | None
    batches: int
    samples: int
    scale: float = 0.0

    @property
    def delta(self) -> float:
        """Change of the loss; negative where recalibration helps."""
        return self.after - self.before

    @property
    def worse(self) -> bool:
        """Whether the loss has risen, beyond its error and by enough to be acted on.

        That is a twentieth of the loss; a fifth where fewer than four batches were held back, and twice the
        loss where it was only one.
        """
        if not math.isfinite(self.before):
            return False
        if not math.isfinite(self.after):
            return True
        errors, share = (_ERRORS, _SHARE) if self.batches >= _FEW else (_ERRORS_FEW, _SHARE_FEW)
        share = share if self.stderr is not None else _SHARE_ALONE
        return self.delta > max(share * abs(self.before), self.scale, errors * (self.stderr or 0.0))

    @property
    def better(self) -> bool:
        """Whether the loss has fallen beyond its error, by however little; never told by one batch.

        That takes three errors, and six where fewer than eight batches were held back.
        """
        if not math.isfinite(self.before):
            return math.isfinite(self.after)
        errors = _ERRORS_FALL if self.batches >= _ENOUGH else _ERRORS_FALL_FEW
        return self.stderr is not None and -self.delta > errors * self.stderr

    def __str__(self) -> str:
        error = "" if self.stderr is None else f" ± {self.stderr:.2g}"
        batches = "1 batch" if self.batches == 1 else f"{self.batches} batches"
        return (
            f"loss {self.before:.3g} before and {self.after:.3g} after ({self.delta:+.3g}{error}, on "
            f"{batches} held back)"
        )


class HeldBack:
    """Chooses batches that are held back from the statistics, evenly over the loader, and keeps them.

    Args:
        total: Number of batches to come, None when unknown.
    """

    def __init__(self, total: int | None) -> None:
        self._stride = _STRIDE_UNKNOWN if total is None else max(min(_STRIDE, total), -(-total // MOST))
        self._enough = total == 1
        self._bytes = 0
        self.calls: list[Call] = []

    def take(self, number: int, call: Call) -> bool:
        """Whether this batch is held back; if so, a copy of it is kept."""
        if self._enough or number % self._stride != self._stride // 2 or number == 0:
            return False
        self._bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors(call.batch))
        self._enough = len(self.calls) + 1 >= MOST or self._bytes > _BYTES
        if self._bytes > _BYTES and self.calls:
            return False
        self.calls.append(call.copy())
        return True


def held_back_losses(
    shadow: Shadow,
    norms: Sequence[Norm],
    calls: Sequence[Call],
    statistics: Statistics,
    forward: Forward | None,
    loss: Loss | None,
) -> Tensor:
    """Loss of each held-back batch before and after: rows of samples, before, after, scale; NaN if unknown.

    Args:
        shadow: Stands in for the network; reset afterwards.
        norms: Its norms that can be measured.
        calls: The batches.
        statistics: The new statistics by norm name, fit to the norms' own tensors.
        forward: The user's function of model and batch.
        loss: The user's function of outputs and targets.

    Raises:
        VarshiftError: If the user's own loss fails.
    """
    rows = torch.full((MOST, 4), math.nan, dtype=torch.float64, device="cpu")
    try:
        columns = [_losses(shadow, norms, calls, changed, forward, loss) for changed in ({}, statistics)]
    except VarshiftError:
        if loss is not None:
            raise
        return rows  # no default loss fits the outputs and targets: nothing is known of it
    except Exception:
        if strict() or loss is not None:
            raise
        return rows
    finally:
        shadow.fresh()
    for number, (call, (before, scale), (after, _)) in enumerate(zip(calls, *columns, strict=True)):
        if before is not None and after is not None:
            rows[number] = torch.tensor([call.size, before, after, scale], dtype=torch.float64, device="cpu")
    return rows


def _losses(
    shadow: Shadow,
    norms: Sequence[Norm],
    calls: Sequence[Call],
    statistics: Statistics,
    forward: Forward | None,
    loss: Loss | None,
) -> list[tuple[float | None, float]]:
    network: nn.Module = shadow.fresh()
    seed_all(0)  # what acts at random in evaluation does so alike in both
    set_noise(network, norms, False)
    with torch.no_grad():
        for norm in norms:
            if norm.name in statistics:
                for state, value in norm.changes(*statistics[norm.name]):
                    write(state.tensor, value)
    tap = Tap(norms, "called", record=False)
    found: list[tuple[float | None, float]] = []
    for call in calls:
        own = call.copy()
        outputs = run_pass(network, forward, own, tap)
        nats = loss is None and correct(outputs, own.targets) is not None
        found.append((batch_loss(outputs, own, loss), _NATS if nats else 0.0))
        if found[-1][0] is None:
            return [(None, 0.0)] * len(calls)
    return found


def effect_of(rows: Tensor) -> Effect | None:
    """The effect from rows of samples, loss before, loss after and scale; None where no loss is known."""
    rows = rows[rows[:, 0].isfinite()]
    if not len(rows):
        return None
    weights = rows[:, 0] / rows[:, 0].sum()
    changes = rows[:, 2] - rows[:, 1]
    before, after = float((weights * rows[:, 1]).sum()), float((weights * rows[:, 2]).sum())
    error, count = None, len(rows)
    if count > 1:
        spread = (weights.square() * (changes - (weights * changes).sum()).square()).sum()
        error = float((spread * count / (count - 1)).sqrt())
    return Effect(before, after, error, count, int(rows[:, 0].sum()), float(rows[:, 3].max()))
