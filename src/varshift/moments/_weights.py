"""What a prediction keeps of a network, to answer further questions from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from varshift._errors import ModelError

_SAMPLED = 16  # values of a parameter along each axis that tell whether it has changed


class Weights:
    """The tensors of a network as they are now.

    Parameters share their memory with the network: copies would double it. A sample of their values tells
    whether they have changed since. Buffers, which a forward pass may write, are copied.
    """

    def __init__(self, network: nn.Module) -> None:
        self._parameters = {name: tensor.detach() for name, tensor in network.named_parameters()}
        self._sample = {name: _thinned(tensor).clone() for name, tensor in self._parameters.items()}
        self._buffers = {name: tensor.detach().clone() for name, tensor in network.named_buffers()}

    @property
    def device(self) -> torch.device:
        """Where they are."""
        tensors = (self._parameters | self._buffers).values()
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; buffers as copies, since some operations write them without saying so.

        Raises:
            ModelError: If a parameter has changed since.
        """
        for name, sample in self._sample.items():
            if not torch.equal(_thinned(self._parameters[name]).nan_to_num(), sample.nan_to_num()):
                raise ModelError(
                    f"the parameter {name!r} has changed since the prediction was made, which answers for "
                    "the old weights only: call varshift.predict again."
                )
        return self._parameters | {name: tensor.clone() for name, tensor in self._buffers.items()}


def _thinned(x: Tensor) -> Tensor:
    return x[tuple(slice(None, None, max(size // _SAMPLED, 1)) for size in x.shape)]
