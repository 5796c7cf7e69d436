"""Gathers the history of a training from what is read after its steps."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from torch import nn
from torch.optim import Optimizer

from varshift.evidence import History, HistoryRow, NormHistory, RateChange
from varshift.model import find_norms
from varshift.monitor._flags import Flags
from varshift.monitor._frozen import norms_of_frozen_parts
from varshift.monitor._ranks import Ranks
from varshift.monitor._recomputed import can_recompute
from varshift.monitor._statistics import Statistics
from varshift.monitor._trail import Trail
from varshift.monitor._weights import Weights

_RECENT = 12  # moves of the weights by which the usual number of updates is told
_ROWS = 64


@dataclass(slots=True)
class _Norm:
    """What is counted for one norm."""

    paths: int
    recomputed: bool
    held: bool
    training: int = 0
    evaluation: int = 0
    moved: bool = False
    broken_at: int | None = None
    since_move: int | None = 0
    updates: deque[int] = field(default_factory=lambda: deque(maxlen=_RECENT))


class Recorder:
    """Reads a network after the steps of its training.

    Args:
        network: The network, unwrapped.
        optimizer: What trains it, where that is known.
        every: Between how many steps its statistics are read. They are read one step before, too, so that
            what a single step does is known.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer | None = None, every: int = 1) -> None:
        self.network, self.every = network, every
        norms = find_norms(network)
        self.skipped_norms = tuple(
            norm.name for norm in norms if not norm.readable or norm.states.unsupported is not None
        )
        self.norms = tuple(norm for norm in norms if norm.name not in self.skipped_norms)
        self.statistics = Statistics(self.norms)
        self.flags = Flags(network, self.norms)
        self.weights = Weights(network, optimizer)
        self._ranks = Ranks(self.statistics, self.weights)
        paths = Counter(id(module) for _, module in network.named_modules(remove_duplicate=False))
        self._norms = [
            _Norm(
                paths[id(norm.module)],
                _can_be_recomputed(network, norm.name),
                self.flags.root and not norm.module.training,
            )
            for norm in self.norms
        ]
        self.steps = self.readings = self.moves = self.skipped = 0
        self.asleep = self.asleep_since = 0
        self.woken_at: int | None = None
        self._calls: deque[int] = deque(maxlen=_RECENT)
        self._since_move = 0
        self._rewritten: deque[int] = deque(maxlen=_RECENT)
        self._backwards: deque[int] = deque(maxlen=_RECENT)
        self._quiet = [0] * len(self.flags.noise)
        self._acted = [False] * len(self.flags.noise)
        self._rates: list[RateChange] = []
        self._rows: list[HistoryRow] = []
        self._row_every = 1
        self.statistics.read()
        self._trails = [Trail(self.statistics, number) for number in range(len(self.norms))]

    def step(self) -> bool:
        """Takes note of a step; returns whether statistics were compared."""
        self.steps += 1
        moved = self.weights.moved()
        self._since_move += 1
        place = self.steps % self.every
        reads = self.every == 1 or place == 0
        if reads or place == self.every - 1:
            self._read(moved, single=reads)
        if moved:
            self._note_move()
        return reads

    def _note_move(self) -> None:
        self.moves += 1
        if self.moves > 1:  # the watch may have begun in the middle of the first
            self._calls.append(self._since_move)
        self._since_move = 0
        rewritten, backwards = self.weights.rewritten(), self.weights.backwards()
        if rewritten is not None:
            self._rewritten.append(rewritten)
        if backwards is not None:
            self._backwards.append(backwards)

    def _read(self, moved: bool, *, single: bool) -> None:
        statistics, flags = self.statistics, self.flags
        statistics.read()
        flags.read()
        self.readings += 1
        changed, updates, finite = statistics.moved(), statistics.updates(), statistics.finite()
        for number, norm in enumerate(self._norms):
            self._note_norm(number, norm, changed[number], updates[number], finite[number], moved, single)
        self._rates.extend(flags.changed_rates(self.steps))
        if any(norm.broken_at is not None for norm in self._norms) and not moved:
            self.skipped += 1
        if moved:
            self._note_modes(any(changed))
        if self.readings % self._row_every == 0:
            self._note_row()
        if single:
            self._ranks.see(self.steps)

    def _note_norm(
        self,
        number: int,
        norm: _Norm,
        changed: bool,
        updates: int | None,
        finite: bool,
        moved: bool,
        single: bool,
    ) -> None:
        training = self.flags.norms[number]
        norm.training += training
        norm.evaluation += not training
        norm.moved = norm.moved or changed
        if training and norm.held and self.woken_at is None:
            self.woken_at = self.steps
        if not finite and norm.broken_at is None:
            norm.broken_at = self.steps
        if self.every > 1:
            if single and updates is not None:
                norm.updates.append(updates)
        elif updates is None or norm.since_move is None:
            norm.since_move = 0 if moved else None
        else:
            norm.since_move += updates
            if moved:
                if self.moves:  # the watch may have begun in the middle of the first
                    norm.updates.append(norm.since_move)
                norm.since_move = 0
        momentum = self.norms[number].momentum
        self._trails[number].see(updates, self.statistics.counts[number], momentum)

    def _note_modes(self, statistics_moved: bool) -> None:
        """What is in evaluation mode although training goes on; statistics that moved say that it was not."""
        flags = self.flags
        if flags.asleep and not statistics_moved:
            if self.asleep == 0:
                self.asleep_since = self.steps
            self.asleep += 1
        else:
            self.asleep = 0
        for number, training in enumerate(flags.noisy):
            if training:
                self._quiet[number], self._acted[number] = 0, True
            else:
                self._quiet[number] += 1

    def _note_row(self) -> None:
        if len(self._rows) >= _ROWS:
            self._rows, self._row_every = self._rows[1::2], self._row_every * 2
        trails = [
            (abs(trail.ratio - 1), number)
            for number, trail in enumerate(self._trails)
            if trail.ratio is not None
        ]
        worst = max(trails)[1] if trails else None
        modes = (self._per_move(_usual(norm.updates)) for norm in self._norms)
        usual = Counter(mode for mode in modes if mode is not None)
        self._rows.append(
            HistoryRow(
                self.steps,
                sum(self.flags.norms),
                sum(self.flags.noisy),
                usual.most_common(1)[0][0] if usual else None,
                "" if worst is None else self.norms[worst].name,
                None if worst is None else self._trails[worst].ratio,
            )
        )

    def history(self) -> History:
        """What was seen so far."""
        frozen = self.weights.frozen(moves=self.moves)
        parts = norms_of_frozen_parts(self.network, self.norms, frozen)
        trained_parts = self._trained_parts(frozen)
        noises = [n for n, noise in enumerate(self.flags.noise) if noise.part in trained_parts]
        noises = [n for n in noises if self.flags.acts(n)]
        return History(
            steps=self.steps,
            every=self.every,
            readings=self.readings,
            moves=self.moves,
            calls=_usual(self._calls),
            rewritten=None if (usual := _usual(self._rewritten)) is None else bool(usual),
            backwards=_usual(self._backwards),
            asleep=self.asleep,
            asleep_since=self.asleep_since,
            woken_at=self.woken_at,
            quiet_noise=tuple(self.flags.noise[n].name for n in noises if self._quiet[n] >= 3),
            awake_noise=sum(self._quiet[n] == 0 and self._acted[n] for n in noises),
            skipped=self.skipped,
            norms={
                one.name: NormHistory(
                    name=one.name,
                    momentum=one.momentum,
                    paths=norm.paths,
                    recomputed=norm.recomputed,
                    training=norm.training,
                    evaluation=norm.evaluation,
                    held=norm.held,
                    frozen=one.name in parts,
                    updates=self._per_move(_usual(norm.updates)),
                    moved=norm.moved,
                    broken_at=norm.broken_at,
                    variance_ratio=trail.ratio,
                    mean_offset=trail.offset,
                    trailing=trail.trailing,
                )
                for one, norm, trail in zip(self.norms, self._norms, self._trails, strict=True)
            },
            rates=tuple(self._rates),
            ranks=self._ranks.facts(),
            rows=tuple(self._rows),
        )

    def resume(self, history: History) -> None:
        """Goes on from the history of another recorder of the same network."""
        self.steps, self.readings, self.moves = history.steps, history.readings, history.moves
        self.skipped, self.woken_at = history.skipped, history.woken_at
        self.asleep, self.asleep_since = history.asleep, history.asleep_since
        for values, usual in (
            (self._calls, history.calls),
            (self._rewritten, history.rewritten),
            (self._backwards, history.backwards),
        ):
            values.clear()
            values.extend([] if usual is None else [int(usual)] * 2)
        quiet = set(history.quiet_noise)
        self._quiet = [3 if noise.name in quiet else 0 for noise in self.flags.noise]
        for one, norm in zip(self.norms, self._norms, strict=True):
            seen = history.norms.get(one.name)
            if seen is None:
                continue
            norm.held, norm.moved, norm.broken_at = seen.held, seen.moved, seen.broken_at
            norm.training, norm.evaluation = seen.training, seen.evaluation
            norm.updates.clear()
            norm.updates.extend([] if seen.updates is None or self.every > 1 else [seen.updates] * 2)
        self._rates, self._rows = list(history.rates), list(history.rows)
        self.statistics.read()
        self._trails = [Trail(self.statistics, number) for number in range(len(self.norms))]

    def _per_move(self, updates: int | None) -> int | None:
        """Updates for one move of the weights, from those that were read."""
        if updates is None or self.every == 1:
            return updates
        return updates * (_usual(self._calls) or 1)

    def _trained_parts(self, frozen: frozenset[str]) -> set[str]:
        """Paths of the modules that hold a weight that trains, directly or in a part."""
        parts = set()
        for name, _ in self.network.named_parameters():
            if name not in frozen:
                owner = name
                while owner:
                    owner = owner.rpartition(".")[0]
                    parts.add(owner)
        return parts


def _can_be_recomputed(network: nn.Module, name: str) -> bool:
    """Whether a module around a norm can run it again in the backward pass."""
    module, around = network, [network]
    for part in name.partition("#")[0].split("."):
        module = module.get_submodule(part) if part else module
        around.append(module)
    return any(map(can_recompute, around))


def _usual(values: deque[int]) -> int | None:
    """The value that most of two or more have."""
    if len(values) < 2:
        return None
    value, count = Counter(values).most_common(1)[0]
    return value if count * 2 > len(values) else None
