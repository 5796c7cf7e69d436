"""How a batch can be read: which parts of it are inputs, by position or by name, and which are targets.

A signature and a batch often leave one reading, sometimes several; `readings` puts the likeliest first and
the first that runs, and whose targets fit, is taken. The rules:

- A tensor or a packed sequence is the input. So is an object (a graph batch, a data class), unless it has an
  attribute for every required argument: then these are the inputs.
- Of a tuple or list, as many items as ``forward`` requires are the inputs, and the next one is the target.
  The inputs may also be in a tuple or mapping of their own.
- Items that are left may fill optional arguments whose default is None. A single one is taken for the target,
  unless the argument is called a length and the item holds those of padded inputs; it is an input where it
  does not fit the outputs. Of two or more, as in ``(x_cat, x_cont, y)``, the first is an input, unless it is
  a list of integers, or the argument is called a mask and the item is none: then it is usually the target.
- A target is handed to ``forward`` as well where the network does not run without, as detectors in training.
- A mapping is passed by keyword when its keys are arguments of ``forward`` and every required argument is
  among them. One required argument that is missing takes the only tensor that is left and no target.
  Otherwise the only tensor that is no target is the input, failing that the mapping itself, and failing that
  its largest tensor of floats.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from varshift._errors import DataError
from varshift.model._graphs import TARGET_NAMES
from varshift.model._nest import attributes, is_object
from varshift.model._samples import samples_in_lists

Split = tuple[tuple[Any, ...], dict[str, Any], Any]


@dataclass(frozen=True, slots=True)
class Signature:
    """What the forward of a model takes.

    Attributes:
        required: Names of the positional arguments without a default.
        optional: Names of the positional arguments whose default is None.
        named: Names that may be passed by keyword.
        star: Whether it takes any number of positional arguments.
        keywords: Whether it takes any keyword.
    """

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    named: frozenset[str] = frozenset()
    star: bool = False
    keywords: bool = False


def signature_of(model: nn.Module) -> Signature:
    """Reads the signature of ``model.forward``; an empty one where it has none."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return Signature()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return Signature(
        tuple(p.name for p in positional if p.default is p.empty),
        tuple(p.name for p in positional if p.default is None),
        frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)),
        any(p.kind is p.VAR_POSITIONAL for p in parameters),
        any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read batches of one structure.

    Attributes:
        positions: Items of the batch, by index or key, that are passed by position; None passes the batch.
        keywords: Entries of the batch that are passed by keyword.
        target: Index or key of the target, None without one.
        nested: Whether the first item holds the inputs: positions and keywords are those of that item.
        words: How the batch was read, for the report; empty where no other reading was likely.
    """

    positions: tuple[Any, ...] | None = None
    keywords: tuple[str, ...] = ()
    target: Any = None
    nested: bool = False
    words: str = field(default="", compare=False)

    def split(self, batch: Any) -> Split:
        """Positional inputs, keyword inputs and the target of a batch."""
        inputs = batch[0] if self.nested else batch
        args = (inputs,) if self.positions is None else tuple(_entry(inputs, key) for key in self.positions)
        kwargs = {key: _entry(inputs, key) for key in self.keywords}
        return args, kwargs, None if self.target is None else _entry(batch, self.target)


def _entry(batch: Any, key: Any) -> Any:
    return batch[key] if isinstance(batch, (Mapping, tuple, list)) else getattr(batch, key, None)


def readings(signature: Signature, batch: Any) -> tuple[Reading, ...]:
    """The ways to read a batch, the likeliest first; see the rules at the top of this file.

    Raises:
        DataError: If the batch is empty or of a type without tensors.
    """
    if isinstance(batch, (Tensor, PackedSequence)):
        return (Reading(),)
    if isinstance(batch, Mapping):
        if len(batch) == 0:
            raise DataError("a batch is an empty mapping: expected the inputs by name.")
        return _of_mapping(signature, batch)
    if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)) and not _is_a_whole(batch):
        if len(batch) == 0:
            raise DataError("a batch is an empty tuple: expected inputs, or (inputs, targets).")
        return _of_items(signature, batch)
    if is_object(batch) or _is_a_whole(batch):
        target = next((name for name in TARGET_NAMES if isinstance(_attribute(batch, name), Tensor)), None)
        return _of_object(signature, batch, target)
    raise DataError(
        f"a batch is a {type(batch).__name__}: expected a tensor, (inputs, targets), a mapping or an object "
        "that holds tensors. Pass forward= (a function of model and batch) for other structures."
    )


def _is_a_whole(batch: Any) -> bool:
    """Whether an object without tensors that can be seen is a batch all the same: it can be moved."""
    return not isinstance(batch, (tuple, list)) and callable(_attribute(batch, "to")) and bool(_held(batch))


def _held(batch: Any) -> Any:
    return attributes(batch) or hasattr(batch, "__len__")


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name, None)
    except Exception:  # a property of the user's own
        return None


def _of_object(signature: Signature, batch: Any, target: str | None) -> tuple[Reading, ...]:
    whole = Reading(target=target)
    if not signature.required or any(
        not isinstance(_attribute(batch, name), Tensor) for name in signature.required
    ):
        return (whole,)
    named = [*signature.required, *signature.optional]
    inputs = [
        name for name in named if name not in TARGET_NAMES and isinstance(_attribute(batch, name), Tensor)
    ]
    return Reading((), tuple(inputs), target), whole


def _of_items(signature: Signature, batch: Sequence[Any]) -> tuple[Reading, ...]:
    first, count = batch[0], len(batch)
    second = 1 if count > 1 else None
    if isinstance(first, Mapping) and first and _takes_all(signature, first):
        return (Reading((), tuple(first), second, nested=True),)
    required = max(1, len(signature.required))
    if signature.star:
        required = max(1, count - 1)
    nested: list[Reading] = []
    if isinstance(first, (tuple, list)) and not isinstance(first, PackedSequence):
        reading = Reading(tuple(range(len(first))), (), second, nested=True)
        own = max(1, len(first)) if signature.star else required
        if own == len(first) > 1:
            return (reading,)
        most = required + len(signature.optional)
        if required < len(first) <= most and samples_in_lists(batch) is None:
            nested.append(reading)
    return (*_by_position(signature, batch, min(required, count)), *nested)


def _by_position(signature: Signature, batch: Sequence[Any], required: int) -> list[Reading]:
    count, names = len(batch), signature.optional
    plain = Reading(tuple(range(required)), (), required if count > required else None)
    if count == required:
        return [plain]
    if signature.star:
        return [plain, _all_inputs(count)]
    if not names:
        return [plain]
    more: list[Reading] = []
    for taken in range(required + 1, min(required + len(names), count) + 1):
        target = taken if count > taken else None
        shown = ", ".join(repr(name) for name in names[: taken - required])
        rest = f"item {taken + 1} as the targets" if target is not None else "none as targets"
        words = f"Of a batch of {count} items {taken} were read as inputs, {shown} among them, and {rest}."
        more.append(Reading(tuple(range(taken)), (), target, words=words))
    handed = Reading(
        tuple(range(required + 1)),
        (),
        required,
        words=f"The targets were handed to the model as {names[0]!r}: it does not run without them.",
    )
    if _is_input(names[0], batch, required):
        return [*more, plain, handed]
    return [plain, handed, *more] if _is_target_name(names[0]) else [plain, *more, handed]


def _all_inputs(count: int) -> Reading:
    words = f"All {count} items of a batch were read as inputs, none as targets."
    return Reading(tuple(range(count)), words=words)


def _is_input(name: str, batch: Sequence[Any], place: int) -> bool:
    """Whether the first item that may fill an optional argument is rather an input than the target."""
    item, first = batch[place], batch[0]
    if _is_target_name(name) or not isinstance(item, Tensor):
        return False
    if "len" in name.lower():
        return len(batch) > place + 1 or _are_lengths(item, first)
    if len(batch) == place + 1 or (item.dim() < 2 and not item.is_floating_point()):
        return False
    return "mask" not in name.lower() or (item.dim() > 1 and bool(((item == 0) | (item == 1)).all()))


def _is_target_name(name: str) -> bool:
    return name.lower() in TARGET_NAMES or name.lower().startswith(("label", "target", "gt_"))


def _are_lengths(item: Tensor, padded: Any) -> bool:
    """Whether a tensor holds the lengths of padded inputs: steps, or shares of the longest."""
    if not isinstance(padded, Tensor) or padded.dim() < 2 or item.dim() != 1 or item.numel() == 0:
        return False
    longest, shortest = float(item.max()), float(item.min())
    return len(item) in padded.shape[:2] and shortest > 0 and longest in (1.0, *map(float, padded.shape[:2]))


def _of_mapping(signature: Signature, batch: Mapping[str, Any]) -> tuple[Reading, ...]:
    target = next((key for key in TARGET_NAMES if batch.get(key) is not None), None)
    accepted = _accepted(signature, batch)
    missing = [name for name in signature.required if name not in accepted]
    if any(key not in TARGET_NAMES for key in accepted) and not missing:
        return (Reading((), tuple(accepted), target),)
    tensors = [key for key, item in batch.items() if key not in TARGET_NAMES and isinstance(item, Tensor)]
    named = [key for key in accepted if key in signature.named]
    left = [key for key in tensors if key not in named]
    whole = Reading(target=target)
    if len(missing) == 1 == len(left) and any(key not in TARGET_NAMES for key in named):
        return (Reading((left[0],), tuple(named), target), whole)
    if len(tensors) == 1:
        return Reading((tensors[0],), (), target), whole
    floats = [key for key in tensors if batch[key].is_floating_point()]
    if not floats:
        return (whole,)
    largest = max(floats, key=lambda key: batch[key].numel())
    words = f"Of a batch with the keys {', '.join(map(repr, batch))} only {largest!r} was read as an input."
    return whole, Reading((largest,), (), target, words=words)


def _accepted(signature: Signature, batch: Mapping[str, Any]) -> list[str]:
    if signature.keywords:
        return [key for key in batch if isinstance(key, str)]
    return [key for key in batch if key in signature.named]


def _takes_all(signature: Signature, entries: Mapping[str, Any]) -> bool:
    accepted = _accepted(signature, entries)
    return len(accepted) == len(entries) and all(name in accepted for name in signature.required)
