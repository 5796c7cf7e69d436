"""Weight initialisation corrected for dropout, for a whole network: its Flow says what feeds each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from varshift._errors import ModelError
from varshift.flow import Flow, Node, Ref, capture, execute
from varshift.model import Forward, unwrap
from varshift.nn.init import dropout_corrected_
from varshift.theory import equal_noise_keep, noise_variance

from ._noise import multiplies
from ._shape import stated_shape

Activation = Callable[[Tensor], Tensor] | str
_PASSES = ("view", "pool", "norm", "concat")


@dataclass(frozen=True, slots=True)
class LayerInitialisation:
    """How one layer was initialised.

    Attributes:
        name: Module path.
        activation: Operator that feeds it, ``"identity"`` for the input of the network and for sums.
        keep_in: KEEP probability of the noise on its input; for other noise that of the dropout as strong.
        output_activation: Operator behind it.
        keep_out: KEEP probability of the noise on its output.
    """

    name: str
    activation: str
    keep_in: float
    output_activation: str
    keep_out: float


def initialise_network_(
    model: nn.Module,
    *,
    shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
    mode: Literal["forward", "autograd", "paper", "mean"] = "forward",
    distribution: Literal["sphere", "orthogonal", "uniform"] = "sphere",
    forward: Forward | None = None,
    generator: torch.Generator | None = None,
) -> tuple[LayerInitialisation, ...]:
    """Initialises all linear and convolutional layers so that dropout leaves their variance alone.

    The network is captured in train mode. For each layer the capture says which activation and which noise
    stand in front of it and behind it, be they modules or functions; `varshift.nn.init.dropout_corrected_`
    does the rest. Norms in between pass a signal on with variance 1, pooling is ignored as in the authors'
    code, and a layer fed by a sum counts as fed by the identity.

    Args:
        model: The network; only weights and biases of linear and convolutional layers change.
        shape: Shape of an input without the batch dimension, or several; by default the
            one that the network states.
        mode: Which variance to preserve; see `dropout_corrected_`.
        distribution: How directions are drawn; see `dropout_corrected_`.
        forward: How the network is called with a batch.
        generator: Source of the random numbers.

    Returns:
        What was done, layer by layer in the order of execution. A layer that runs several times is
        initialised for its first run.

    Raises:
        ModelError: If the network cannot be captured.

    Reference:
        D. Hendrycks, K. Gimpel, arXiv 1607.02488, for sequences of layers; finding what surrounds a layer in
        any network is this package's own.

    Example:
        >>> import torch
        >>> from varshift.moments import initialise_network_
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Dropout(0.5),
        ...                           torch.nn.Linear(64, 10))
        >>> for layer in initialise_network_(net):
        ...     print(layer.name, layer.activation, layer.keep_in)
        0 identity 1.0
        3 relu 0.5
    """
    network = unwrap(model)
    sizes = stated_shape(network, forward) if shape is None else shape
    shapes = [sizes] if all(isinstance(size, int) for size in sizes) else list(sizes)
    examples = tuple(torch.zeros(2, *size) for size in shapes)  # type: ignore[misc]
    captured = capture(network, examples[0] if len(examples) == 1 else examples, forward=forward)
    if captured.train is None:
        raise ModelError(f"the network could not be captured in train mode: {' '.join(captured.failures)}")
    surroundings = _Surroundings(captured.train)
    modules = dict(network.named_modules())
    done: dict[str, LayerInitialisation] = {}
    plans: list[tuple[nn.Module, dict[str, Any]]] = []
    for node in captured.train.nodes:
        name = _owner(captured.train, node)
        if name is None or name in done or not isinstance(modules.get(name), (nn.Linear, _ConvNd)):
            continue
        before, keep_in = surroundings.before(node)
        after, keep_out = surroundings.after(node)
        done[name] = LayerInitialisation(name, _name(before), keep_in, _name(after), keep_out)
        plans.append(
            (
                modules[name],
                {
                    "nonlinearity": _function(before),
                    "output_nonlinearity": _function(after),
                    "keep_in": keep_in,
                    "keep_out": keep_out,
                },
            )
        )
    for module, arguments in plans:
        dropout_corrected_(module, mode=mode, distribution=distribution, generator=generator, **arguments)
    return tuple(done.values())


def _owner(flow: Flow, node: Node) -> str | None:
    """The module whose weight a node uses."""
    if node.kind != "weight":
        return None
    for index in node.inputs:
        target = flow.nodes[index].target or ""
        if flow.nodes[index].kind == "parameter" and target.endswith(".weight"):
            return target.removesuffix(".weight")
    return None


class _Surroundings:
    """What stands in front of a node and behind it."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._keep = {}
        for site in flow.noises:
            strength = noise_variance(site.kind, site.rate or 0.0) if multiplies(site) else 0.0
            self._keep[site.node] = equal_noise_keep(strength)
        self._users: dict[int, list[int]] = {}
        signals: set[int] = set()
        for node in flow.nodes:
            if node.kind == "input" or any(index in signals for index in node.inputs):
                signals.add(node.index)
            for index in node.inputs:
                self._users.setdefault(index, []).append(node.index)
        self._signals = signals

    def before(self, node: Node) -> tuple[Node | None, float]:
        """The activation that feeds a node, None for none, and the keep probability on the way."""
        keep, current = 1.0, self._source(node)
        while current is not None:
            if current.index in self._keep or _is_dropout(current):
                keep *= self._keep.get(current.index, 1.0)
            elif current.kind == "activation":
                return (current, keep) if _is_function(current) else (None, keep)
            elif current.kind == "norm" or current.kind not in _PASSES:
                return None, keep
            current = self._source(current)
        return None, keep

    def after(self, node: Node) -> tuple[Node | None, float]:
        """The activation behind a node, and the keep probability of the noise behind that."""
        found: Node | None = None
        keep, current = 1.0, self._only_user(node)
        while current is not None:
            if current.index in self._keep or _is_dropout(current):
                keep *= self._keep.get(current.index, 1.0)
            elif current.kind == "activation" and found is None and _is_function(current):
                found = current
            elif current.kind not in _PASSES:
                break
            current = self._only_user(current)
        return found, keep

    def _source(self, node: Node) -> Node | None:
        found = [index for index in node.inputs if index in self._signals]
        return self._flow.nodes[found[0]] if len(found) == 1 else None

    def _only_user(self, node: Node) -> Node | None:
        users = [index for index in self._users.get(node.index, ()) if index in self._signals]
        return self._flow.nodes[users[0]] if len(users) == 1 else None


def _is_function(node: Node) -> bool:
    """Whether a node is a function of its signal alone; sums and products with constants are not meant."""
    return not node.has("term", "product")


def _is_dropout(node: Node) -> bool:
    """Whether a node is a dropout, be it at rate 0."""
    return node.has("dropout")


def _name(node: Node | None) -> str:
    return "identity" if node is None else node.op


def _function(node: Node | None) -> Activation:
    if node is None:
        return "identity"

    def function(x: Tensor) -> Tensor:
        args = tuple(x if isinstance(value, Ref) else value for value in node.args)
        return execute(node, args, dict(node.kwargs))

    return function
