"""The kinds of cures by their codes. A code never changes its meaning."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from varshift._errors import VarshiftError
from varshift._sites import SiteId

from ._finding import Cure, Safety

CURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "recalibrate": "Re-estimates the running statistics and leaves the weights as they are.",
        "keep-statistics": "Leaves the running statistics as they are.",
        "rebind-statistics": "Takes running statistics over from the networks that the weights come from.",
        "load-weights": "Loads the weights, or the statistics, that are missing.",
        "move-noise": "Moves the noise to another place of the network.",
        "lower-rate": "Lowers the rate of the noise.",
        "swap-noise": "Puts noise of another kind in the place of this one.",
        "remove-noise": "Removes the noise.",
        "insert-components": "Puts norm and dropout in front of a weight layer.",
        "rescale-noise": "Divides what noise lets pass by the mean of its factor.",
        "average-noise": "Averages outputs over several draws of the noise in evaluation.",
        "use-result": "Uses a result that the network computes and drops.",
        "swap-norm": "Puts a norm that does not look at other samples in the place of this one.",
        "batch-free-norm": "Puts norms that do not look at other samples in the place of one norm per block.",
        "split-norm": "Gives each of several signals a norm of its own.",
        "sync-norm": "Takes batch statistics over all processes.",
        "skip-update": "Leaves the statistics alone in a forward pass that only takes a look.",
        "set-momentum": "Sets the momentum of a norm.",
        "track-statistics": "Lets a norm keep running statistics.",
        "drop-statistics": "Lets a norm use the statistics of each sample in evaluation, too.",
        "keep-float32": "Keeps a norm in float32, whatever the rest of the network computes in.",
        "reach-norm": "Checks a norm with data that reach it, or removes it.",
        "prune-channels": "Removes channels that no longer carry a signal.",
        "find-overflow": "Finds the weight or the operation from which on values are not finite.",
        "hold-statistics": "Holds the statistics of frozen norms, whatever train() does.",
        "freeze-parameters": "Freezes the parameters of a norm together with its statistics.",
        "exclude-from-decay": "Puts parameters into a group without weight decay.",
        "anneal-rate": "Lets the learning rate fall as training goes on.",
        "drop-bias": "Leaves out a bias that the norm after it subtracts.",
        "larger-batch": "Uses larger batches.",
        "drop-last": "Leaves out the incomplete last batch of an epoch.",
        "match-inputs": "Prepares the inputs as they were prepared in training.",
        "reshuffle": "Draws the samples of every batch at random in every epoch.",
        "same-function": "Lets evaluation compute what training computes, noise and norms apart.",
        "set-mode": "Puts the whole model in training or in evaluation mode.",
        "follow-mode": "Lets a call follow the mode of its module.",
        "stop-writing": "Writes state in training only.",
        "register-module": "Registers a module, so that train() and eval() reach it.",
        "mend-sample": "Leaves a sample out, or prepares it like the others.",
        "separate-samples": "Lets the prediction for a sample depend on that sample alone.",
    }
)


def cure(code: str, name: str, safety: Safety, target: SiteId | None = None, **options: Any) -> Cure:
    """A cure of a kind that `CURES` lists.

    Raises:
        VarshiftError: If no kind of cure has this code.
    """
    if code not in CURES:
        raise VarshiftError(f"code={code!r} is no kind of cure: the kinds are {', '.join(CURES)}.")
    return Cure(code, name, safety, target, options)


BATCH_FREE: Final = cure(
    "batch-free-norm", "one norm per block that looks at single samples only, and train again", "unsafe"
)
