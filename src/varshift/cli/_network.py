"""The network of a verb: built, with its weights, on its device."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from varshift._errors import VarshiftError
from varshift.cli._errors import described, print_note
from varshift.cli._models import resolve_model
from varshift.cli._sources import Weights
from varshift.cli._weights import Checkpoint, ignored_keys, load_weights, read_checkpoint


def load_network(
    target: str,
    arguments: dict[str, Any],
    weights: Weights,
    device: str | None,
    *,
    seed: int,
) -> tuple[nn.Module, Checkpoint | None, dict[str, str]]:
    """Builds a network with a fixed seed, loads its weights and puts it on a device.

    Returns:
        The network, the file its weights come from, and for each key of the file the key in the network.

    Raises:
        VarshiftError: If any of it cannot be done.
    """
    network = resolve_model(target, arguments, seed=seed)
    checkpoint, names = None, {}
    if weights.file is not None:
        checkpoint, names = _load(network, weights, "--weights")
    if device is not None:
        try:
            network.to(device)
        except (RuntimeError, NotImplementedError) as error:
            raise VarshiftError(
                f"--device: the network cannot be put on {device!r}: {described(error)}."
            ) from error
    return network, checkpoint, names


def with_weights(network: nn.Module, weights: Weights) -> nn.Module:
    """The same network with other weights, a copy: what ``--reference-weights`` names.

    Raises:
        VarshiftError: If the file cannot be read or does not fit, or the network cannot be copied.
    """
    option = "--reference-weights"
    try:
        reference = copy.deepcopy(network)
    except Exception as error:  # whatever modules of the user's hold
        raise VarshiftError(f"{option}: the network cannot be copied: {described(error)}.") from error
    _load(reference, weights, option)
    return reference


def _load(network: nn.Module, weights: Weights, option: str) -> tuple[Checkpoint, dict[str, str]]:
    """Reads a file into a network and says what was chosen and what was left out."""
    assert weights.file is not None
    try:
        checkpoint = read_checkpoint(weights.file, weights.key, trust=weights.trust)
        names = load_weights(network, checkpoint, weights.prefix, strict=weights.strict)
    except VarshiftError as error:
        raise VarshiftError(str(error).replace("--weights:", f"{option}:", 1)) from error.__cause__
    if checkpoint.others and weights.key is None:
        chosen = ".".join(checkpoint.location) or "the top level"
        print_note(
            f"{checkpoint.path} has several state dicts; took {chosen}. "
            f"--weights-key takes another: {', '.join(checkpoint.others)}"
        )
    if ignored := ignored_keys(checkpoint, names, weights.prefix):
        print_note(
            f"{checkpoint.path} has keys that {type(network).__name__} does not, which were ignored "
            f"(--strict refuses them): {ignored}"
        )
    return checkpoint, names
