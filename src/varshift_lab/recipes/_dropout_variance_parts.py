"""What the paper on dropout variance adds to training, and what it measures of norms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from varshift.model import find_norms, preserved
from varshift.nn.init import dropout_corrected_
from varshift.trials import Measurements, Workbench
from varshift_lab.data import EpochLoader, Images
from varshift_lab.training import TrainingSettings, Treatment, evaluate, measure


@dataclass(frozen=True)
class WeightStart(Treatment):
    """Draws the weights anew: corrected for the dropout that feeds each layer, or as He et al.

    Corrected weights have orthonormal filters of the norm that keeps the forward signal, as in the authors'
    code (but for a first convolution, whose filters it leaves too short). Max-pooling is ignored, as there.

    Attributes:
        corrected: Which of the two.
    """

    corrected: bool

    def prepare(self, model: nn.Module) -> None:
        """Draws all weights and sets biases to 0."""
        feeds, keep = "identity", 1.0
        for module in model.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d)):
                keep = 1 - module.p
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                if self.corrected:
                    dropout_corrected_(module, feeds, keep_in=keep, distribution="orthogonal")
                else:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
                feeds, keep = "relu", 1.0


@measure("variance_only")
def variance_only(
    model: nn.Module, train: Images, test: Images, workbench: Workbench, settings: TrainingSettings
) -> Measurements:
    """Test error after one pass in which the norms renew their variances and nothing else.

    As in the paper: dropout off, norms on the statistics of each batch, moving averages of the variances with
    the norms' own momentum, means kept. (The authors' code averages ``1 / sqrt(var + eps)`` and runs five
    such passes, which differs by little.)
    """
    loader = EpochLoader(train, min(settings.batch_size, len(train)), drop_last=settings.drop_last)
    with preserved(model, seed=0), torch.no_grad():
        model.eval()
        norms = find_norms(model)
        means = [norm.mean.clone() for norm in norms]
        for norm in norms:
            norm.module.train(True)
        for inputs, _ in loader:
            model(inputs)
        for norm, mean in zip(norms, means, strict=True):
            norm.mean.copy_(mean)
        found = evaluate(model, EpochLoader(test, 500, order="stored"))
    return {"variance_only_test_error": found.error, "variance_only_test_loss": found.loss}
