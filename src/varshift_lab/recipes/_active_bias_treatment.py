"""Training with Active Bias: weights or draws that follow from what each sample's probability did so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from varshift.data import ActiveBias, ActiveBiasSampler, EpochSampler, Score, generator_of, whole_seed
from varshift_lab.data import Images
from varshift_lab.training import TrainingSettings, Treatment

Use = Literal["weights", "sampling", "importance"]


@dataclass(frozen=True)
class ActiveBiasTreatment(Treatment):
    """One of the paper's methods.

    Attributes:
        score: Which score, see `varshift.data.prediction_score`.
        use: ``"weights"`` of the losses (SGD-W...), ``"sampling"`` with replacement (SGD-S...), or
            ``"importance"``: sampling with the weights that make it unbiased again (SGD-ISD).
        burn_in: Epochs of training as usual at the beginning.
        smoothing: What is added to the scores, or ``"mean"`` for their mean.
    """

    score: Score = "variance"
    use: Use = "weights"
    burn_in: int = 2
    smoothing: float | str = "mean"

    def remember(self, images: Images, settings: TrainingSettings) -> _Memory:
        """The histories, where the images are."""
        smoothing = "mean" if isinstance(self.smoothing, str) else self.smoothing
        bias = ActiveBias(
            len(images),
            self.score,
            burn_in=self.burn_in,
            smoothing=smoothing,
            device=images.labels.device,
        )
        return _Memory(bias)

    def sampler(
        self, images: Images, settings: TrainingSettings, seed: int, state: _Memory
    ) -> EpochSampler | None:
        """Draws by the scores, unless losses are weighted."""
        if self.use == "weights":
            return None
        state.sampler = ActiveBiasSampler(state.bias, seed=seed)
        return state.sampler

    def loss(self, outputs: Tensor, labels: Tensor, ids: Tensor, state: _Memory) -> Tensor | None:
        """Weighted losses; the probabilities of this step count from the next one on."""
        if self.use == "weights":
            weights = state.bias(ids, outputs, labels)
        else:
            state.bias.record(ids, outputs, labels)
            if self.use == "sampling" or state.sampler is None:
                return None
            weights = state.sampler.importance_weights(ids)
        return (weights * F.cross_entropy(outputs, labels, reduction="none")).mean()

    def note(self, model: Any, images: Images, state: _Memory) -> Mapping[str, float]:
        """How much a sample of a wrong label counts, where there are any; an average sample counts 1."""
        wrong = images.wrong
        if images.true_labels is None or not bool(wrong.any()):
            return {}
        shares = state.bias.sampling_probabilities()
        return {"wrong_weight": float(shares[wrong.cpu()].mean() * len(shares))}


@dataclass(frozen=True)
class UniformTreatment(Treatment):
    """Every sample drawn with replacement, all alike: what sampling is compared with (SGD-Uni)."""

    def sampler(
        self, images: Images, settings: TrainingSettings, seed: int, state: Any
    ) -> EpochSampler | None:
        """The draws."""
        return UniformSampler(len(images), seed)


class UniformSampler(EpochSampler):
    """As many draws with replacement as there are samples.

    Args:
        samples: Number of samples.
        seed: Seed of all draws.
    """

    def __init__(self, samples: int, seed: int) -> None:
        self._size = samples
        self.seed = whole_seed(seed)

    def _samples(self) -> int:
        return self._size

    def _indices(self, epoch: int) -> Tensor:
        generator = generator_of(self.seed, epoch)
        return torch.randint(self._size, (self._size,), generator=generator, device="cpu")

    def __len__(self) -> int:
        return self._size


class _Memory:
    """The histories, and the sampler that draws from them."""

    def __init__(self, bias: ActiveBias) -> None:
        self.bias = bias
        self.sampler: ActiveBiasSampler | None = None

    def set_epoch(self, epoch: int) -> None:
        self.bias.set_epoch(epoch)

    def synchronise(self) -> None:
        self.bias.synchronise()

    def state_dict(self) -> dict[str, Any]:
        return self.bias.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.bias.load_state_dict(state_dict)
