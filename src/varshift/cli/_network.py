"""The network of a verb: built, with its weights, on its device."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from varshift._errors import VarshiftError
from varshift.cli._errors import described, print_note
from varshift.cli._models import resolve_model
from varshift.cli._weights import Checkpoint, load_weights, read_checkpoint


def load_network(
    target: str,
    arguments: dict[str, Any],
    weights: Path | None,
    weights_key: str | None,
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
    if weights is None and weights_key is not None:
        raise VarshiftError("--weights-key: there is no file to look in: give --weights too.")
    network = resolve_model(target, arguments, seed=seed)
    checkpoint, names = None, {}
    if weights is not None:
        checkpoint = read_checkpoint(weights, weights_key)
        if checkpoint.others and weights_key is None:
            chosen = ".".join(checkpoint.location) or "the top level"
            print_note(
                f"{weights} has several state dicts; took {chosen}. "
                f"--weights-key takes another: {', '.join(checkpoint.others)}"
            )
        names = load_weights(network, checkpoint)
    if device is not None:
        try:
            network.to(device)
        except (RuntimeError, NotImplementedError) as error:
            raise VarshiftError(
                f"--device: the network cannot be put on {device!r}: {described(error)}."
            ) from error
    return network, checkpoint, names


def with_weights(network: nn.Module, path: Path) -> nn.Module:
    """The same network with other weights, a copy: what ``--reference-weights`` names.

    Raises:
        VarshiftError: If the file cannot be read or does not fit, or the network cannot be copied.
    """
    option = "--reference-weights"
    try:
        reference = copy.deepcopy(network)
    except Exception as error:  # whatever modules of the user's hold
        raise VarshiftError(f"{option}: the network cannot be copied: {described(error)}.") from error
    try:
        load_weights(reference, read_checkpoint(path))
    except VarshiftError as error:
        raise VarshiftError(str(error).replace("--weights:", f"{option}:", 1)) from error
    return reference
