"""Active Bias: samples that the model is uncertain about count more."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, Literal

import torch
from torch import Tensor

from varshift._arguments import count as whole_number
from varshift._arguments import non_negative
from varshift.data._correct_probability import correct_probability
from varshift.data._epochs import sized
from varshift.data._history import PredictionHistory
from varshift.data._prediction_score import SCORES, Score, prediction_score


class ActiveBias:
    r"""Sample weights from the history of the probabilities that training gave to the correct classes.

    With the raw score :math:`s_i` of `prediction_score` and the smoothed one :math:`u_i = s_i + \epsilon`,
    a sample's loss is multiplied by :math:`v_i = u_i / N`, with :math:`N` such that the weights average 1.
    Called with a batch's ids and outputs, it returns the weights that follow from the histories so far and
    only then adds the new probabilities. It runs no model and keeps three numbers per sample and class
    probability.

    The weight is 1 during the burn-in, and for samples with fewer than two probabilities.

    ====================================== =======================================================
    published name                         here
    ====================================== =======================================================
    SGD-WD, SGD-WE, SGD-WPV, SGD-WTC       ``score="difficulty"``, ``"easiness"``, ``"variance"``,
                                           ``"threshold"``
    SGD-SD, SGD-SE, SGD-SPV, SGD-STC       the same, given to `ActiveBiasSampler`
    SGD-ISD                                ``"difficulty"``, given to `ActiveBiasSampler`, and the
                                           loss times its `importance_weights`
    ====================================== =======================================================

    Batch norm sees unweighted batches under weights, but biased ones under the sampler: there, estimate its
    statistics anew on uniformly drawn batches before evaluation.

    Args:
        data: The data set, or the number of its samples. Ids are indices in it.
        score: Which raw score.
        burn_in: Number of epochs of training as usual, while the histories fill. The public code took 15 of
            200; the paper's own numbers were not available (recalled: between 2 and 50).
        smoothing: :math:`\epsilon`: "mean" for the mean raw score of all samples with a score, now, which is
            the paper's rule as recalled, unverified; or a number (public codes: 0.2 and 0.1).
        normalisation: Whether the weights average 1 in each "batch" or over the "dataset"; public codes
            differ.
        ddof: Of the variance: 0 in all public codes, 1 for the unbiased estimate.
        num_classes: None for one probability per sample. A number for one per class, as multi-label problems
            have them; weights are then of shape (B, num_classes). An extension.
        device: Where the history is kept (in float64).
        process_group: The processes among which `synchronise` pools; None for all.

    Shape:
        ids (B,), logits (B, C) and targets (B,), or logits and targets of the same shape; weights (B,), or
        (B, num_classes).

    Raises:
        ValueError: If an argument is outside its range, ids are unknown or shapes do not fit.

    Reference: Chang, Learned-Miller and McCallum (NIPS 2017), "Active bias: training more accurate neural
    networks by emphasizing high variance samples". Its text was not available. The scores and the weighting
    are confirmed by independent re-implementations; the smoothing rule is recalled.

    Example:
        >>> import torch
        >>> from varshift.data import ActiveBias
        >>> bias = ActiveBias(4, score="threshold", burn_in=1)
        >>> targets, ids = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2])
        >>> for _ in range(3):  # what a training loop does with each batch
        ...     logits = torch.tensor([[3.0, 0.0], [0.0, 0.1], [0.0, 9.0]])
        ...     weights = bias(ids, logits, targets)
        ...     losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        ...     loss = (weights * losses).mean()
        >>> weights
        tensor([0.7300, 1.7694, 0.5006])
    """

    def __init__(
        self,
        data: Sized | int,
        score: Score = "variance",
        *,
        burn_in: int,
        smoothing: Literal["mean"] | float = "mean",
        normalisation: Literal["batch", "dataset"] = "batch",
        ddof: int = 0,
        num_classes: int | None = None,
        device: torch.device | str | None = "cpu",
        process_group: Any = None,
    ) -> None:
        if score not in SCORES:
            raise ValueError(f"score={score!r} must be one of {', '.join(map(repr, SCORES))}.")
        if normalisation not in ("batch", "dataset"):
            raise ValueError(f"normalisation={normalisation!r} must be 'batch' or 'dataset'.")
        if ddof not in (0, 1):
            raise ValueError(f"ddof={ddof!r} must be 0 (the published codes) or 1 (the unbiased estimate).")
        if isinstance(smoothing, str) and smoothing != "mean":
            raise ValueError(f"smoothing={smoothing!r} must be 'mean' or a number of at least 0.")
        self.score: Score = score
        self.burn_in = whole_number("burn_in", burn_in, 0)
        self.smoothing = smoothing if smoothing == "mean" else non_negative("smoothing", smoothing)
        self.normalisation = normalisation
        self.ddof = ddof
        self.history = PredictionHistory(
            len(sized("data", data)), num_classes, device=device, process_group=process_group
        )
        self._told_epoch: int | None = None
        self._sum, self._scored, self._version = (*self._partial(None), self.history.version)

    # ------------------------------------------------------------------ epochs

    @property
    def epoch(self) -> int:
        """The number of the epoch: as told, or else how often a data set's worth of samples was seen."""
        return self.history.seen // self.history.size if self._told_epoch is None else self._told_epoch

    def set_epoch(self, epoch: int) -> None:
        """Tells the number of the epoch, from 0; needed where epochs leave out or repeat many samples."""
        self._told_epoch = whole_number("epoch", epoch, 0)

    @property
    def burning_in(self) -> bool:
        """Whether training goes on as usual, for now."""
        return self.epoch < self.burn_in

    # ------------------------------------------------------------------ scores

    def _scores(self, ids: Any) -> tuple[Tensor, Tensor]:
        """Raw scores of some ids, or of all samples, and whether each has one."""
        count, mean, variance = self.history.moments(ids, ddof=self.ddof)
        known = (count >= 2)[(...,) + (None,) * (mean.dim() - 1)].expand_as(mean)
        return prediction_score(self.score, count, mean, variance), known

    def _partial(self, ids: Any) -> tuple[Tensor, Tensor]:
        """Sum and number of the scores of some ids, or of all samples."""
        score, known = self._scores(ids)
        return torch.where(known, score, 0.0).sum(), known.sum()

    def _totals(self) -> tuple[Tensor, Tensor]:
        """Sum and number of all scores; kept up to date in steps, so that a batch costs a batch's time."""
        if self._version != self.history.version:
            self._sum, self._scored = self._partial(None)
            self._version = self.history.version
        return self._sum, self._scored

    def mean_score(self) -> Tensor:
        """Mean raw score of all samples that have one; 0 before."""
        total, scored = self._totals()
        return total / scored.clamp(min=1)

    def epsilon(self) -> Tensor:
        """What is added to each score."""
        if self.smoothing == "mean":
            return self.mean_score()
        return torch.full_like(self._totals()[0], float(self.smoothing))

    def scores(self, ids: Any = None) -> Tensor:
        """Raw scores in float64 of some ids, or of all samples; NaN where fewer than two values are known."""
        score, known = self._scores(ids)
        return torch.where(known, score, float("nan"))

    # ------------------------------------------------------------------ weights

    def weights(self, ids: Any) -> Tensor:
        """The weights of a batch, in float64 on the history's device; the history stays as it is."""
        score, known = self._scores(ids)
        if self.burning_in:
            return torch.ones_like(score)
        smoothed = score + self.epsilon()
        if self.normalisation == "batch":
            norm = torch.where(known, smoothed, 0.0).sum() / known.sum().clamp(min=1)
        else:
            norm = self.mean_score() + self.epsilon()
        # Scores that are all zero say nothing: then all samples count alike.
        return torch.where(known & (norm > 0), smoothed / norm, 1.0)

    def record(
        self,
        ids: Any,
        logits: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        probabilities: Any = None,
    ) -> None:
        """Adds to the histories: logits with targets, or probabilities with targets or of the correct class.

        Args:
            ids: Indices in the data set, of shape (B,).
            logits: The training pass's outputs, noise and batch statistics included.
            targets: Class numbers (B,), or labels in [0, 1] of the logits' shape.
            probabilities: In place of logits. Without targets they are those of the correct classes.
        """
        if (logits is None) == (probabilities is None):
            raise ValueError("logits and probabilities: exactly one of them is needed.")
        if logits is not None:
            if targets is None:
                raise ValueError(
                    "targets=None: logits need the targets; they may be left out with probabilities."
                )
            probabilities = correct_probability(logits, targets)
        elif targets is not None:
            if not isinstance(probabilities, Tensor):
                probabilities = torch.as_tensor(probabilities, dtype=torch.float64, device="cpu")
            probabilities = correct_probability(probabilities, targets, logits=False)
        index = self.history.index(ids)
        touched = index.unique()
        total, scored = self._totals()
        old_sum, old_scored = self._partial(touched)
        self.history.update(index, probabilities)
        new_sum, new_scored = self._partial(touched)
        self._sum, self._scored = total + (new_sum - old_sum), scored + (new_scored - old_scored)
        self._version = self.history.version

    def __call__(
        self,
        ids: Any,
        logits: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        probabilities: Any = None,
    ) -> Tensor:
        """The weights of a batch from the histories before it, which then grow by the batch; see `record`.

        Returns:
            Weights in the outputs' number type (at least float32) on their device, without gradient.
        """
        weights = self.weights(ids)
        self.record(ids, logits, targets, probabilities=probabilities)
        outputs = logits if probabilities is None else probabilities
        if not isinstance(outputs, Tensor):
            return weights.float()
        # The type first: there may be no float64 where the outputs are.
        dtype = torch.float64 if outputs.dtype is torch.float64 else torch.float32
        return weights.to(dtype).to(outputs.device)

    def sampling_probabilities(self) -> Tensor:
        r"""The probability :math:`P(i) = u_i / \sum_j u_j` of each sample, in float64 on the CPU.

        Samples without a score get the average; so does everyone during the burn-in. Of several class
        probabilities per sample, the mean score counts.
        """
        size = self.history.size
        if self.burning_in:
            return torch.full((size,), 1 / size, dtype=torch.float64, device="cpu")
        score, known = self._scores(None)
        score, known, epsilon = score.cpu(), known.cpu(), self.epsilon().cpu()
        if score.dim() > 1:
            score, known = score.mean(1), known.all(1)
        smoothed = score + epsilon
        average = torch.where(known, smoothed, 0.0).sum() / known.sum().clamp(min=1)
        if float(average) == 0:
            return torch.full((size,), 1 / size, dtype=torch.float64, device="cpu")
        filled = torch.where(known, smoothed, average)
        return filled / filled.sum()

    # ------------------------------------------------------------------ processes and checkpoints

    def synchronise(self) -> None:
        """Pools what all processes added since the last time, best once an epoch; all must call it."""
        self.history.synchronise()

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to go on exactly; among processes, call `synchronise` first."""
        total, scored = self._totals()
        return {
            "history": self.history.state_dict(),
            "epoch": self._told_epoch,
            "sum": total.clone(),
            "scored": scored.clone(),
            "score": (self.score, self.ddof),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state; the history may come from training with another score.

        Raises:
            ValueError: If the state is of another number of samples or classes.
        """
        missing = {"history", "epoch", "sum", "scored", "score"} - set(state_dict)
        if missing:
            raise ValueError(
                f"state_dict lacks {sorted(missing)}: pass what state_dict() of an ActiveBias gave."
            )
        self.history.load_state_dict(state_dict["history"])
        self._told_epoch = state_dict["epoch"]
        if tuple(state_dict["score"]) == (self.score, self.ddof):
            self._sum = state_dict["sum"].clone().to(self.history.device)
            self._scored = state_dict["scored"].clone().to(self.history.device)
            self._version = self.history.version

    def to(self, device: torch.device | str) -> ActiveBias:
        """Moves the history to a device."""
        self.history.to(device)
        self._sum, self._scored = self._sum.to(device), self._scored.to(device)
        return self

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.history.size}, score={self.score!r}, burn_in={self.burn_in}, "
            f"smoothing={self.smoothing!r}, normalisation={self.normalisation!r}, ddof={self.ddof})"
        )
