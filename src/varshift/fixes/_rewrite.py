"""Edits of single calls in a module's code: noise in the place of a call, or next to one."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass, replace

import torch
from torch import nn

from varshift._sites import SiteId, Source
from varshift.fixes._class_draft import ClassDraft, EditedText
from varshift.fixes._edit import NEW, Change, edit
from varshift.fixes._edited_class import ClassEdit, user_class, with_edit
from varshift.fixes._noise_action import NoiseAction
from varshift.fixes._noise_edits import several
from varshift.fixes._rewrite_actions import (
    Where,
    is_attention,
    makes_noise,
    noisy_call,
    noisy_forward,
    noisy_receiver,
    replaced_call,
)
from varshift.fixes._rewrite_arguments import arguments_of, as_function
from varshift.fixes._rewrite_functions import innermost
from varshift.fixes._rewrite_join import Join, rewrite_join
from varshift.fixes._rewrite_names import UNKNOWN
from varshift.fixes._source_code import CallPlace, Expression
from varshift.fixes._surgery import Refused, Surgery
from varshift.model import inside_wrapper

_WRAPPED = ("OptimizedModule", "FullyShardedDataParallel", "FSDPModule")
_KEEPING = ("rate", "follow-mode", "rescale")  # kinds that keep the call that is there


@edit("rewrite-call")
@dataclass(frozen=True, slots=True)
class RewriteCall(ClassEdit):
    """Noise of a call, or of an operation that joins a signal with noise, becomes something else.

    Attributes:
        site: The noise site.
        path: The module whose method holds the first call of the chain.
        chain: The calls from that method inwards; the last one is replaced, which may be an operation such
            as ``x * mask``. Functions between are copied for this module, so that nothing changes for others
            who call them.
        action: What becomes of the call.
        always: Whether noise acts in evaluation, too, where the call has no argument that says when.
        sites: All noise sites that the call makes where those are several: it may run in a loop.
        join: How the last one joins noise with a signal, where it does not make the noise itself.
    """

    site: SiteId
    path: str
    chain: tuple[CallPlace, ...]
    action: NoiseAction
    always: bool = False
    sites: tuple[SiteId, ...] = ()
    join: Join | None = None

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Puts the module into a class whose method makes another call."""
        module, cls, source = self.edited(surgery.network)
        surgery.set_class(module, cls)
        before, sites = self.chain[-1].text, self.sites or (self.site,)
        after = self.action.text
        if self.join is not None and self.join.scale != 1:
            after = f"{after}, times {self.join.scale:.6g}".removeprefix(", ")
        why = several(sites, f"`{before}`")
        return tuple(Change(site, before, after, "call", source, why=why) for site in sites)

    def edited(self, network: nn.Module) -> tuple[nn.Module, type, Source]:
        """The module, its class with the other call, and the line of the call; nothing is changed.

        Raises:
            Refused: If the edit cannot be made.
        """
        module = editable(network, self.path)
        text, call = self._find(ClassDraft(user_class(module)))
        runs_as_written(module, text)
        layer = text.value_of(call, module) if isinstance(call, ast.Call) else None
        if self.action.kind == "rate" and isinstance(layer, nn.Module) and as_function(layer) is None:
            raise Refused(
                f"`{self.chain[-1].text}` runs a {type(layer).__name__}, whose rate cannot be changed for "
                "one of its calls: put other noise in its place."
            )
        return module, with_edit(module, self), text.line_of(call)

    def _find(self, draft: ClassDraft) -> tuple[EditedText, Expression]:
        text = draft.text_of(self.chain)
        place = self.chain[-1]
        return text, text.call(place) if self.join is None else text.expression(place)

    def build(self, draft: ClassDraft) -> None:
        """Replaces the call."""
        if self.join is not None:
            rewrite_join(draft, *self._find(draft), self.join, self.action, self.always)
            return
        text, call = draft.find(self.chain)
        called, bound = text.called(call)
        arguments = arguments_of(called, bound)
        written = f"`{self.chain[-1].text}`"
        if self.action.kind == "rate" and arguments.known and arguments.rate is None:
            raise Refused(f"{written} has no argument for a rate: put other noise in its place.")
        if makes_noise(self.action) and not arguments.pure and not is_attention(called):
            raise Refused(f"{written} does more than make noise: its rate can be changed, its kind cannot.")
        draft.replace(text, call, replaced_call(self.action, arguments, self.always))

    def without_place(self) -> RewriteCall:
        """The same edit of any module of the class."""
        return replace(self, site=SiteId("", self.site.kind), path="", sites=())

    def supersedes(self, earlier: ClassEdit) -> bool:
        """Whether the call that it replaces was replaced before."""
        if not isinstance(earlier, RewriteCall) or earlier.chain != self.chain:
            return False
        return self.action.kind not in _KEEPING or earlier.action.kind == self.action.kind


@edit("insert-noise")
@dataclass(frozen=True, slots=True)
class InsertNoise(ClassEdit):
    """Noise on the input or on the output of a module, in training.

    Attributes:
        path: The module.
        where: ``"before"`` it, on its first tensor, or ``"after"`` it, on its result: a tensor, or the first
            one of several.
        action: The noise.
    """

    path: str
    where: Where
    action: NoiseAction

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Puts the module into a class whose `forward` adds the noise."""
        module = editable(surgery.network, self.path)
        surgery.set_class(module, with_edit(module, self))
        side = "input" if self.where == "before" else "output"
        change = f"{self.action.text} on the {side} of {type(module).__name__}"
        return (Change(SiteId(self.path, NEW), "", change, "call", _line_of_forward(user_class(module))),)

    def build(self, draft: ClassDraft) -> None:
        """Wraps `forward`."""
        require_noise(self.action)
        draft.wrap_forward(lambda forward: noisy_forward(forward, self.action, self.where))

    def without_place(self) -> InsertNoise:
        """The same edit of any module of the class."""
        return replace(self, path="")


@edit("insert-at-call")
@dataclass(frozen=True, slots=True)
class InsertAtCall(ClassEdit):
    """Noise on the first tensor that a call takes, or on its result, in training.

    The tensor whose method is called counts as the first one: ``x.mean((2, 3))``.

    Attributes:
        path: The module whose method holds the first call of the chain.
        chain: The calls from that method inwards; the noise goes to the last one.
        action: The noise.
        where: ``"before"`` or ``"after"`` the call.
    """

    path: str
    chain: tuple[CallPlace, ...]
    action: NoiseAction
    where: Where = "before"

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Puts the module into a class whose method makes the call with noise."""
        module = editable(surgery.network, self.path)
        text, call = ClassDraft(user_class(module)).find(self.chain)
        runs_as_written(module, text)
        surgery.set_class(module, with_edit(module, self))
        site = SiteId(self.path, NEW)
        after = f"{self.action.text} {self.where} `{self.chain[-1].text}`"
        return (Change(site, "", after, "call", text.line_of(call)),)

    def build(self, draft: ClassDraft) -> None:
        """Adds the noise to the call."""
        require_noise(self.action)
        text, call = draft.find(self.chain)
        value = text.value_of(call)
        receiver = value is UNKNOWN and isinstance(call.func, ast.Attribute) and not text.is_member(call)
        if receiver and self.where == "before":
            draft.wrap_receiver(text, call, noisy_receiver(self.action))
        else:
            draft.replace(text, call, noisy_call(self.action, self.where))

    def without_place(self) -> InsertAtCall:
        """The same edit of any module of the class."""
        return replace(self, path="")


def editable(network: nn.Module, path: str) -> nn.Module:
    """The module of a path, if another class can be given to it.

    Raises:
        Refused: If there is none, or what was done to it since it was made forbids it.
    """
    module = network
    steps = path.split(".") if path else []
    for place in range(len(steps) + 1):
        if place:
            inner = module._modules.get(steps[place - 1])
            if inner is None:
                raise Refused(f"the model has no module '{path}'.")
            module = inner
        name = ".".join(steps[:place]) or "the model"
        kind = type(module).__name__
        if inside_wrapper(module) is not None or kind in _WRAPPED or kind.startswith("FSDP"):
            raise Refused(f"{name} is wrapped ({kind}): fix the model first, and wrap it afterwards.")
        if vars(module).get("_compiled_call_impl") is not None:
            raise Refused(f"{name} is compiled: fix the model first, and compile it afterwards.")
        if isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule)):
            raise Refused(
                f"{name} is a {kind}, which has no source of its own: fix the model that it was made from."
            )
    _require_own_method(module, path, "forward")
    return module


def runs_as_written(module: nn.Module, text: EditedText) -> None:
    """Refuses a module whose method was replaced on the instance."""
    _require_own_method(module, "", text.source.function.__name__)


def require_noise(action: NoiseAction) -> None:
    """Refuses an action that needs noise to be there."""
    if not makes_noise(action):
        raise Refused(f"kind={action.kind!r} changes noise that is there: it cannot be put where none is.")


def _require_own_method(module: nn.Module, path: str, method: str) -> None:
    if method in vars(module):
        place = f"'{path}'" if path else f"the {type(module).__name__}"
        raise Refused(
            f"`{method}` of {place} was replaced on the instance, which hides that of its class: fix the "
            "model before it is patched."
        )


def _line_of_forward(cls: type) -> Source | None:
    function = innermost(inspect.getattr_static(cls, "forward", None))
    return Source(function.__code__.co_filename, function.__code__.co_firstlineno) if function else None
