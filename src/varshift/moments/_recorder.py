"""Watches a pass and keeps, node by node, what is needed to answer for other rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from varshift.flow import Node, Ref, UnknownOperator, arguments_of, execute, has_property, overwrites

from . import _responses
from ._call import weight_key
from ._clean_pass import CleanPass
from ._profile import Profile, profile_of
from ._responses import Response
from ._train_pass import TrainPass

Place = tuple[int, int]  # a node, and which of its results
_BY_GROUPS = frozenset(
    ["group_norm", "native_group_norm", "layer_norm", "native_layer_norm", "instance_norm"]
)


@dataclass(slots=True)
class Norm:
    """A norm as it was seen: its name and call, what it divides by, and its affine part."""

    key: tuple[str, int]
    mean: Tensor
    variance: Tensor
    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(slots=True)
class Seen:
    """A call as it was seen.

    Attributes:
        places: Where its operands are kept.
        given: Profiles of its operands.
        results: Profiles of its results.
        anchored: Of a norm: the operand once it was put right.
        norm: Of a norm: the rest.
        responses: How the results follow from the operands; empty where no noise has a say.
        mixes: Whether the operation mixes units.
        overwrites: The operand that is overwritten with the result.
    """

    places: tuple[Place, ...]
    given: tuple[Profile, ...]
    results: tuple[Profile | None, ...]
    anchored: Profile | None = None
    norm: Norm | None = None
    responses: tuple[Response, ...] = ()
    mixes: bool = False
    overwrites: int | None = None


class Recorder:
    """Watches a pass.

    Args:
        watched: The pass, not yet run.
        touched: Norms that noise reaches, by node: from them on, a pass without noise depends on rates.
        matrices: Sums of weights, shared by several recorders.
        responding: Whether to find out how results follow from operands.
    """

    def __init__(
        self,
        watched: TrainPass | CleanPass,
        touched: set[int],
        matrices: dict[str, tuple[Tensor, Tensor, int]],
        *,
        responding: bool,
    ) -> None:
        self.watched, self.matrices, self.responding = watched, matrices, responding
        self.seen: dict[int, Seen] = {}
        self.state: dict[Place, Profile] = {}
        self._touched: set[int] = set(touched)
        self._derived: set[int] = set()
        watched.watch = self._watch

    def _watch(self, node: Node) -> None:
        if node.kind == "input":
            self._derived.add(node.index)
            self.seen[node.index] = Seen((), (), self._results(node))
            self._keep(node.index, self._results(node))
        if node.kind in ("input", "parameter", "buffer", "attribute", "constant", "output"):
            return
        inputs = self._inputs(node)
        if not any(index in self._derived for index in inputs):
            return
        self._derived.add(node.index)
        results = self._results(node)
        if not results:
            return
        places = tuple(place for index in inputs for place in self._places(index, node))
        seen = Seen(places, tuple(self.state[place] for place in places), results)
        if node.index in self.watched.norm_at and node.has("batch_norm") and places:
            seen.anchored = self._anchored(node, places[0]) or seen.given[0]
            self.state[places[0]] = seen.anchored
            seen.norm = self._norm(node, seen.anchored)
        if overwrites(node) and node.args and isinstance(node.args[0], Ref):
            seen.overwrites = node.args[0].index
            self._keep(seen.overwrites, results)
        if self.responding and self._depends(node, inputs):
            self._touched.add(node.index)
            if seen.overwrites is not None:
                self._touched.add(seen.overwrites)
            seen.responses, seen.mixes = self._responses(node, seen)
        self.seen[node.index] = seen
        self._keep(node.index, results)

    def _anchored(self, node: Node, place: Place) -> Profile | None:
        """The input of a norm once it was put right."""
        if isinstance(self.watched, CleanPass):
            site, call = self.watched.norm_at[node.index]
            observed = self.watched.observed.get((site.name, call))
            return observed and Profile.of(_row(observed.mean), _row(observed.variance))
        found = profile_of(self.watched.values.get(place[0]))
        return found if isinstance(found, Profile) else None

    def _norm(self, node: Node, x: Profile) -> Norm:
        site, call = self.watched.norm_at[node.index]
        named = self.watched.statistics(node)
        made = self.watched.anchors.get((site.name, call))
        mean, variance = x.mean, x.total
        if made is not None and (site.tracked or isinstance(self.watched, TrainPass)):
            mean, variance = _row(made.channels_mean), _row(made.variance)
        weight = torch.ones_like(mean) if named["weight"] is None else _row(named["weight"])
        bias = torch.zeros_like(mean) if named["bias"] is None else _row(named["bias"])
        return Norm((site.name, call), mean, variance, weight, bias, float(named["eps"]))

    def _inputs(self, node: Node) -> list[int]:
        if isinstance(self.watched, TrainPass) and node.index in self.watched.sites:
            return self.watched.frontier(node)
        found: list[int] = []

        def visit(value: Any) -> None:
            if isinstance(value, Ref):
                found.append(value.index)
            elif isinstance(value, (tuple, list)):
                for item in value:
                    visit(item)

        visit((node.args, tuple(node.kwargs.values())))
        return [index for index in found if index in self._derived]

    def _results(self, node: Node) -> tuple[Profile | None, ...]:
        found = profile_of(self.watched.values.get(node.index))
        if isinstance(found, Profile):
            return (found,)
        return () if found is None or all(item is None for item in found) else found

    def _keep(self, index: int, results: Sequence[Profile | None]) -> None:
        for part, profile in enumerate(results):
            if profile is not None:
                self.state[index, part] = profile

    def _places(self, index: int, node: Node) -> list[Place]:
        """Where the results of a node are kept that another one reads."""
        if node.op == "getitem" and isinstance(node.args[1], int):
            chosen = (index, node.args[1])
            return [chosen] if chosen in self.state else [(index, 0)] if (index, 0) in self.state else []
        found = []
        while (index, len(found)) in self.state:
            found.append((index, len(found)))
        return found

    def _depends(self, node: Node, inputs: Sequence[int]) -> bool:
        if node.index in self._touched or any(index in self._touched for index in inputs):
            return True
        return isinstance(self.watched, TrainPass) and node.index in self.watched.sites

    def _responses(self, node: Node, seen: Seen) -> tuple[tuple[Response, ...], bool]:
        """How every result follows from the operands, and whether the operation mixes units."""
        results = [profile for profile in seen.results if profile is not None]
        if not seen.given or not results:
            return (), False
        name = node.op
        if isinstance(self.watched, TrainPass) and node.index in self.watched.sites:
            name = "noise"  # to run it would draw random numbers that the pass is to draw
        try:
            found, mixes = self._response(name, node, seen, results)
        except (UnknownOperator, RuntimeError, TypeError, ValueError, IndexError, KeyError):
            found, mixes = None, False
        responses = []
        for part, result in enumerate(results):
            chosen = found[min(part, len(found) - 1)] if found else None
            if chosen is None or not _fits(chosen, seen.given, result):
                same = len(seen.given) == 1 and seen.given[0].channels == result.channels
                chosen = _responses.unchanged if same else _responses.averaged(result.channels)
            responses.append(chosen)
        return tuple(responses), mixes

    def _response(
        self, name: str, node: Node, seen: Seen, results: Sequence[Profile]
    ) -> tuple[Sequence[Response] | None, bool]:
        if has_property(name, "weighted") and len(seen.given) == 1:
            return self._weighted(name, node, seen.places[0][0]), True
        if name in ("add", "sub") and len(seen.given) == 2:
            return [_responses.added(seen.given, results[0])], False
        if name == "mul" and len(seen.given) == 2:
            return [_responses.multiplied], True
        if has_property(name, "concatenation"):
            return [_responses.concatenated], False
        if name in _BY_GROUPS:
            named = arguments_of(node)
            groups = named.get("num_groups", named.get("group", 1)) if "group" in name else 1
            return [_responses.renormalised(int(groups) if isinstance(groups, int) else 1)], True
        if has_property(name, "view"):
            return self._viewed(node, seen.places[0][0]), False
        if has_property(name, "elementwise") and len(seen.given) == 1:
            function = self._function(node, seen)
            return (None if function is None else [_responses.elementwise(function)]), False
        return None, not has_property(name, "sum", "product")

    def _weighted(self, name: str, node: Node, source: int) -> list[Response] | None:
        before = self.watched.flow.nodes[source].shape
        arguments = arguments_of(node)
        named = {
            key: None if _is(value, source) else self.watched.fill(value) for key, value in arguments.items()
        }
        weight = arguments.get(weight_key(named) or "")
        target = self.watched.flow.nodes[weight.index].target if isinstance(weight, Ref) else None
        key = f"{target} {before} {node.shape} {node.op}"
        if target is None or key not in self.matrices:
            found = _responses.weights(named, "transpose" in name, before or (), node.shape or ())
            if found is None:
                return None
            self.matrices[key if target else f"{key} {node.index}"] = found
        else:
            found = self.matrices[key]
        return [_responses.mixing(*found)]

    def _viewed(self, node: Node, source: int) -> list[Response] | None:
        """Which channels of the operand the channels of the results are, where each is just one of them."""
        value = self.watched.values.get(source)
        like = value if isinstance(value, Tensor) else getattr(value, "mean", None)
        if not isinstance(like, Tensor) or like.dim() < 2:
            return None
        numbers = like.new_tensor(range(like.shape[1])).reshape(1, -1, *(1,) * (like.dim() - 2))
        numbers = numbers.expand_as(like).contiguous()
        moved = execute(node, *self._swapped(node, source, numbers))
        responses: list[Response] = []
        for part in moved if isinstance(moved, (tuple, list)) else [moved]:
            first = part.movedim(1, 0).flatten(1) if part.dim() > 1 else part[None]
            if not bool((first == first[:, :1]).all()):
                return None
            responses.append(_responses.gathered(first[:, 0].long().cpu()))
        return responses

    def _function(self, node: Node, seen: Seen) -> Callable[[Tensor], Tensor] | None:
        """An elementwise operation as a function of its signal alone."""
        source = seen.places[0][0]

        def narrow(value: Any) -> Any:
            if isinstance(value, Tensor):
                if value.numel() > seen.given[0].channels:
                    raise ValueError("an operand of its own for each element")
                return value.detach().cpu().double() if value.is_floating_point() else value.detach().cpu()
            if isinstance(value, (tuple, list)):
                return type(value)(narrow(item) for item in value)
            return value

        args, kwargs = self._swapped(node, source, None)
        args, kwargs = narrow(args), {key: narrow(value) for key, value in kwargs.items()}
        position = next((i for i, value in enumerate(node.args) if _is(value, source)), None)
        if position is None:
            return None

        def function(x: Tensor) -> Tensor:
            return execute(node, (*args[:position], x, *args[position + 1 :]), kwargs)

        return function

    def _swapped(self, node: Node, source: int, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def swap(given: Any) -> Any:
            if _is(given, source):
                return value
            if isinstance(given, (tuple, list)):
                return type(given)(swap(item) for item in given)
            return self.watched.fill(given)

        return swap(node.args), {key: swap(given) for key, given in node.kwargs.items()}


def _row(values: Tensor) -> Tensor:
    return values.detach().reshape(1, -1).double().cpu()


def _is(value: Any, index: int) -> bool:
    return isinstance(value, Ref) and value.index == index


def _fits(response: Response, given: Sequence[Profile], result: Profile) -> bool:
    try:
        found = response(given)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    return found.channels == result.channels
