"""A prediction beside a check: from the capture that the check makes anyway."""

from __future__ import annotations

from torch import nn

from varshift.flow import Capture
from varshift.model import Call

from ._figures import learned_norms
from ._predict import captured_inputs, sample_count
from ._prediction import Prediction
from ._session import Session


def samples_for_prediction(example: Call) -> int:
    """How many samples of an example a capture should use so that a prediction can be made of it.

    A quarter of what `predict` follows: a check should not cost much more than its capture.
    """
    return max(sample_count(example, real=False) // 4, 2)


def predict_captured(
    network: nn.Module, captured: Capture, example: Call, samples: int, seed: int
) -> Prediction | None:
    """The data-free prediction for a network that has been captured.

    Args:
        network: The network.
        captured: Its capture.
        example: The inputs it was captured with; only their shapes count.
        samples: How many samples of the example the capture used.
        seed: Seed of the made-up inputs and the noise.

    Returns:
        The prediction; None where noise reaches no norm that has learned its statistics.
    """
    train = captured.train
    if train is None or captured.eval is None:
        return None
    learned = learned_norms(train, dict(network.named_buffers()) | dict(network.named_parameters()))
    if not any(name in learned for site in train.noises for name in site.reaches):
        return None
    inputs = captured_inputs(train, example, samples)
    return Session.of(network, captured, inputs, real=False, seed=seed).predict({})
