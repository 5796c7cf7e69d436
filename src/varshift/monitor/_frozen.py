"""Which norms lie in frozen parts of a network, told from the order of its modules alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from varshift.model import Norm


def norms_of_frozen_parts(
    network: nn.Module, norms: Sequence[Norm], frozen: Collection[str]
) -> frozenset[str]:
    """Names of the norms that lie in a frozen part of the network.

    What a norm depends on is not known without running the network. A norm counts where its own parameters
    and all weights of a module around it are frozen, while other parameters train, and where that module is
    frozen as a whole: a direct child of the network, or all parameters that come before it are frozen, too.

    Args:
        network: The network.
        norms: Its norms.
        frozen: Names of the parameters that training leaves as they are.
    """
    names = [name for name, _ in network.named_parameters()]
    if not frozen or all(name in frozen for name in names):
        return frozenset()
    trained = [name for name in names if name not in frozen]
    first_trained = names.index(trained[0])
    positions = {name: number for number, name in enumerate(names)}
    own = {id(module): path for path, module in network.named_modules()}
    top = _outermost(network)
    return frozenset(
        norm.name
        for norm in norms
        if (path := own.get(id(norm.module))) is not None
        and _is_frozen(path, names, trained, positions, first_trained, top)
    )


def _is_frozen(
    path: str,
    names: Sequence[str],
    trained: Sequence[str],
    positions: dict[str, int],
    first_trained: int,
    top: str,
) -> bool:
    def inside(prefix: str) -> list[str]:
        return [name for name in names if name.startswith(f"{prefix}.")]

    own = inside(path)
    if any(name in trained for name in own):
        return False
    around, part = path, None
    while (around := around.rpartition(".")[0]) and around != top:
        weights = inside(around)
        if any(name in trained for name in weights):
            break
        if len(weights) > len(own):
            part = around
    if part is not None and part.rpartition(".")[0] == top:
        return True
    # What comes before it in the network is told from what comes before it in the list of its modules.
    last = max((positions[name] for name in own), default=None)
    if last is None:
        last = max((positions[name] for name in inside(part)), default=None) if part is not None else None
    return last is not None and last > 0 and last < first_trained


def _outermost(network: nn.Module) -> str:
    """Path of the network inside wrappers that have one child with parameters."""
    path, module = "", network
    while True:
        children = [
            (name, child)
            for name, child in module.named_children()
            if next(child.parameters(), None) is not None
        ]
        if len(children) != 1 or any(p is not None for p in module._parameters.values()):
            return path
        name, module = children[0]
        path = f"{path}.{name}" if path else name
