"""The captured network as plain data: a graph of operations with its noise sites and norm sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from varshift._sites import SiteId, Source
from varshift.flow._vocabulary import Property, has_property
from varshift.model import NormStates

CaptureMethod = Literal["recorded", "exported", "decomposed", "hooks"]
Path = Literal["direct", "weight", "join", "none"]
Mode = Literal["train", "eval"]


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of the network, in topological order.

    Attributes:
        index: Position in `Flow.nodes`.
        kind: What the operation is to varshift: ``"input"``, ``"parameter"``, ``"buffer"``,
            ``"attribute"`` (a tensor that a module holds as a plain attribute), ``"constant"``,
            ``"random"`` (a source of random numbers), ``"noise"``, ``"norm"``, ``"weight"`` (linear,
            convolution, matrix product: an operation that mixes units), ``"activation"`` (elementwise),
            ``"join"`` (a sum of several signals), ``"product"``, ``"concat"``, ``"pool"``, ``"view"``,
            ``"output"`` or ``"other"``.
        op: Name of the operation in the vocabulary of this package, ``"conv2d"``; for what is no operation,
            its role. `has` tells what it means.
        module: Path of the module that called it, ``""`` for the root.
        cls: Class name of that module.
        source: Line of the user's code, or None.
        inputs: Indices of the nodes whose values it reads.
        shape: Shape of its (first) tensor result, None where it has none.
        args: Its arguments; every node among them stands as a `Ref`.
        kwargs: Its keyword arguments, likewise.
        target: For parameters, buffers and attributes, their qualified name in the model.
        overload: Full name of the operation, ``"aten.conv2d.default"``, from which `execute` finds its
            function.
        value: For constants and attributes, the tensor.
        trace: What led to it; see `calls`.
    """

    index: int
    kind: str
    op: str
    module: str
    cls: str
    source: Source | None
    inputs: tuple[int, ...]
    shape: tuple[int, ...] | None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    target: str | None = None
    value: Any = field(default=None, repr=False, compare=False)
    overload: str = ""
    trace: Calls | None = field(default=None, repr=False, compare=False)

    @property
    def calls(self) -> tuple[CallFrame, ...]:
        """The calls in the user's code that led to it, the outermost first; empty where none are known."""
        return self.trace.call_frames() if self.trace is not None else ()

    def has(self, *properties: Property) -> bool:
        """Whether the operation has one of some properties of the vocabulary."""
        return has_property(self.op, *properties)


@dataclass(frozen=True, slots=True)
class Ref:
    """An argument that is the result of another node."""

    index: int


@dataclass(frozen=True, slots=True)
class CallFrame:
    """One of the calls that led to an operation, in the user's code: an expression, and who evaluates it.

    Attributes:
        module: Path of the module at work, ``""`` for the root.
        file: Path of the file.
        function: Qualified name of the function, ``"Block.forward"``.
        first_line: Line at which the function's code starts, its decorators included.
        line: First line of the expression.
        end_line: Its last line.
        column: Offset of its first byte in its first line, None where Python keeps none.
        end_column: Offset of the byte after its last one in its last line, likewise.
    """

    module: str
    file: str
    function: str
    first_line: int
    line: int
    end_line: int
    column: int | None = None
    end_column: int | None = None

    @property
    def source(self) -> Source:
        """Its line."""
        return Source(self.file, self.line)


class Calls(Protocol):
    """What led to an operation; read when it is asked for."""

    def call_frames(self) -> tuple[CallFrame, ...]:
        """The user's calls, the outermost first."""
        ...


@dataclass(frozen=True, slots=True)
class Draw:
    """A place where random numbers are drawn.

    Attributes:
        name: Path of the module that draws them.
        cls: Class name of that module.
        node: Index of the node that draws them.
        trace: What led there; see `calls`.
    """

    name: str
    cls: str
    node: int
    trace: Calls | None = field(default=None, repr=False, compare=False)

    @property
    def calls(self) -> tuple[CallFrame, ...]:
        """The calls in the user's code that led to it, the outermost first; empty where none are known."""
        return self.trace.call_frames() if self.trace is not None else ()


@dataclass(frozen=True, slots=True)
class NoiseSite:
    """A place where random noise enters the signal, or where Python takes a choice by chance.

    Attributes:
        name: Path of the owning module (for functional noise: the module whose forward calls it). Several
            sites of one module share this path; their `id` tells them apart.
        cls: Class name of the owning module.
        kind: ``"dropout"`` (elementwise Bernoulli), ``"channel_dropout"``, ``"alpha_dropout"``,
            ``"feature_alpha_dropout"``, ``"drop_path"``, ``"drop_block"``, ``"gaussian"``, ``"uniform"``,
            ``"attention_dropout"``, ``"recurrent_dropout"``, ``"weight_dropout"``, ``"rrelu"``,
            ``"sampling"`` (a random choice that depends on the signal), ``"permutation"`` or ``"other"``.
            Of a choice taken by Python, which `Flow.decisions` lists: ``"layer_drop"`` (from a number that is
            uniform or Bernoulli, such as whether a layer runs) or ``"decision"`` (from any other).
        rate: Drop probability for the Bernoulli kinds, standard deviation for ``"gaussian"``, half-width
            for ``"uniform"`` (of a factor relative to its mean, of a term as it stands); for ``"layer_drop"``
            the probability that the number is below what it is compared with; None when unknown or set by
            the signal.
        source: Line of the user's code, or None.
        node: Index of the node at which the noise meets the signal; of a choice, of the node that hands the
            number to Python, or of the next one after Python drew it.
        reaches: Names of all norm sites downstream.
        nearest: The first norm site reached, None when there is none.
        path: How it reaches the nearest one: ``"direct"`` (nothing that mixes units in between),
            ``"weight"``, ``"join"`` (a sum with another signal), or ``"none"``.
        near: All norm sites reached without passing another norm, with their path class.
        pools: Sources of max-pooling operations that read this noise with no weight in between, as
            ``(module, source, window)``, window being the number of pooled elements.
        drops: For ``"drop_path"``: what the gate multiplies: ``"branch"``, ``"identity"``,
            ``"everything"`` (there is no other path around it), ``"nothing"`` (the result is not used)
            or None when this cannot be told.
        additive: Whether the noise is a term (``x + r``) or values of its own beside the signal, and not a
            factor of it (``x * (1 + r)``, ``x + x * r``): what it does to a variance then depends on how
            large the signal is.
        mean_factor: For noise written by hand, the mean over the noise of what it multiplies the signal with,
            divided by what evaluation multiplies it with: 1 for dropout that divides by its keep probability,
            in training or by a factor in evaluation. None where it cannot be told, in evaluation, and for
            operators of torch, which keep the mean.
        signal: For noise written by hand, index of the node whose value the noise meets at `node`. None where
            several values could be it, in evaluation, and for operators of torch.
        own_factor: As `mean_factor`, of the operation at `node` alone: 0.9 for the product in
            ``x * mask / 0.9``. None where it cannot be told.
        traces: What led to the operations at which it meets the signal, the site's own one first; see
            `calls`.
        drawn: Where its random numbers are drawn, in order: at the site itself by an operator that makes
            noise, else before it, perhaps by another module, as for a mask that all layers share. Empty where
            Python drew them.
        ordinal: Number of the call among those of the same module and kind, from 1, the same in both modes:
            operator calls in order, acting or not, then noise written by hand.
    """

    name: str
    cls: str
    kind: str
    rate: float | None
    source: Source | None
    node: int
    reaches: tuple[str, ...] = ()
    nearest: str | None = None
    path: Path = "none"
    near: Mapping[str, Path] = field(default_factory=dict)
    pools: tuple[tuple[str, Source | None, int], ...] = ()
    drops: str | None = None
    additive: bool = False
    ordinal: int = 1
    mean_factor: float | None = None
    signal: int | None = None
    own_factor: float | None = None
    traces: tuple[Calls, ...] = field(default=(), repr=False, compare=False)
    drawn: tuple[Draw, ...] = field(default=(), repr=False, compare=False)

    @property
    def id(self) -> SiteId:
        """The name of this site."""
        return SiteId(self.name, self.kind, self.ordinal)

    @property
    def calls(self) -> tuple[CallFrame, ...]:
        """The calls in the user's code that led to it, the outermost first; empty where none are known."""
        return self.traces[0].call_frames() if self.traces else ()


@dataclass(frozen=True, slots=True)
class NormSite:
    """A normalisation with running statistics, as the captured mode runs it.

    Attributes:
        name: Path of the module that owns the running statistics (its first name when shared).
        cls: Class name of that module.
        kind: ``"batch_norm"``, ``"instance_norm"`` or ``"hand_written"``.
        channels: Number of channels.
        source: Line of its first call, or None.
        calls: Indices of the nodes that run it; several for a shared norm.
        shapes: Input shape of each call (of the few samples that were captured).
        batch_statistics: Whether the captured mode normalises with batch statistics.
        tracked: False for a norm without running statistics (it uses batch statistics in every mode; it is
            listed so that this can be reported, and it is never a target of reachability).
        states: Where it keeps its running statistics; None without any.
        ordinal: Number of the norm among those of the same module, from 1.
    """

    name: str
    cls: str
    kind: str
    channels: int
    source: Source | None
    calls: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    batch_statistics: bool
    tracked: bool = True
    states: NormStates | None = None
    ordinal: int = 1

    @property
    def id(self) -> SiteId:
        """The name of this site: its statistics are one place, however often they are used."""
        return SiteId(self.name.partition("#")[0], self.kind, self.ordinal)


@dataclass(frozen=True, slots=True)
class Flow:
    """A captured network in one mode.

    Attributes:
        mode: ``"train"`` or ``"eval"``.
        method: How it was captured.
        nodes: All operations in topological order.
        noises: The noise sites, in order of execution.
        norms: The norm sites, in order of execution.
        decisions: The choices that Python takes from random numbers, in order of execution: the places are
            known, not what the other outcome would run. One site for each number of torch that Python reads,
            and for each place of the code at which Python draws numbers of its own.
        limits: What could not be seen, in plain sentences.
        written: Names of the parameters, buffers and attributes of modules that the pass changed.
        writes_input: Whether it wrote to a tensor of its batch.
        by_chance: Whether random numbers that Python reads may decide what runs: a width, a skipped layer.
        number_types: The floating-point types of its values: ``"float16"`` under autocast or after
        ``half()``.
    """

    mode: Literal["train", "eval"]
    method: CaptureMethod
    nodes: tuple[Node, ...]
    noises: tuple[NoiseSite, ...]
    norms: tuple[NormSite, ...]
    limits: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    writes_input: bool = False
    by_chance: bool = False
    number_types: tuple[str, ...] = ()
    decisions: tuple[NoiseSite, ...] = ()


@dataclass(frozen=True, slots=True)
class Capture:
    """The two flows of a network.

    Attributes:
        train: The network as `train()` runs it; None when it could not be captured.
        eval: The network as `eval()` runs it; None when it could not be captured.
        failures: Why a mode could not be captured, in plain sentences.
    """

    train: Flow | None
    eval: Flow | None
    failures: tuple[str, ...] = ()

    @property
    def flows(self) -> tuple[Flow, ...]:
        """Those that were captured, that of training first."""
        return tuple(flow for flow in (self.train, self.eval) if flow is not None)

    @property
    def method(self) -> CaptureMethod:
        """The weaker of the two methods used."""
        order: list[CaptureMethod] = ["recorded", "exported", "decomposed", "hooks"]
        used: list[CaptureMethod] = [flow.method if flow else "hooks" for flow in (self.train, self.eval)]
        return max(used, key=lambda method: order.index(method))

    @property
    def limits(self) -> tuple[str, ...]:
        """What could not be seen in either mode, without repetition."""
        return tuple(
            dict.fromkeys([*(limit for flow in self.flows for limit in flow.limits), *self.failures])
        )
