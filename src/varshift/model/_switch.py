"""The switch between the four states of a live model: training flags, as its own methods set them."""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Collection
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from varshift._errors import ModelError
from varshift.model._norms import find_norms
from varshift.model._roles import calls_norm, makes_noise, may_write_statistics, writes_statistics
from varshift.model._unwrap import inside_wrapper

_lock = threading.RLock()  # flags change together
_active: weakref.WeakKeyDictionary[nn.Module, list[Switch]] = weakref.WeakKeyDictionary()


def train_as_passed(model: nn.Module) -> None:
    """Puts a model into train mode as its user trains it: what he holds in eval mode meanwhile stays there.

    Parts in eval mode within a model in training mode are held so on purpose, or by mistake: either way that
    is how they trained.
    """
    held = [module for module in model.modules() if not module.training] if model.training else []
    model.train(True)
    for module in held:
        module.training = False


def set_flags(
    network: nn.Module,
    noise: bool,
    *,
    training: Collection[nn.Module] = (),
    evaluation: Collection[nn.Module] = (),
    as_passed: bool = False,
) -> None:
    """Puts a network into train mode (noise on) or eval mode (noise off), and some of its modules elsewhere.

    Args:
        network: The network.
        noise: Whether noise acts.
        training: Modules that are in training mode whatever the noise does.
        evaluation: Modules that are in evaluation mode whatever the noise does.
        as_passed: Whether parts in eval mode within a model in training mode stay there (`train_as_passed`).
    """
    if as_passed:
        train_as_passed(network)
    else:
        network.train(True)
    if not noise:
        network.eval()  # as it follows training: a model may do as much or as little here as it likes
    for modules, flag in ((training, True), (evaluation, False)):
        for module in modules:
            module.training = flag


class Switch:
    """One state of a live model, from its making until `undo`.

    Several on one model lie on top of one another; undoing one below leaves those above as they are.

    Args:
        model: The model as its user has it, which may be a wrapper.
        network: The network inside.
        noise: Whether noise acts.
        batch: Whether norms use the statistics of the batch.

    Raises:
        ModelError: If a module keeps statistics and makes noise by the same flag.
    """

    def __init__(self, model: nn.Module, network: nn.Module, *, noise: bool, batch: bool) -> None:
        self._network, self._noise, self._batch = network, noise, batch
        self._wrappers = _wrappers(model)
        self._handles: list[RemovableHandle] = []
        with _lock:
            self._flags = self._read()
            try:
                self._apply()
            except BaseException:
                self._restore()
                raise
            _active.setdefault(network, []).append(self)

    @property
    def done(self) -> bool:
        """Whether it was undone."""
        return self not in _active.get(self._network, ())

    def undo(self) -> None:
        """Gives every module the flag back that it had before; a second time does nothing."""
        with _lock:
            stack = _active.get(self._network, [])
            if self not in stack:
                return
            place = stack.index(self)
            if place + 1 < len(stack):  # the one above goes back to where this one would have gone
                stack[place + 1]._flags = self._flags
                self._remove_hooks()
            else:
                self._restore()
            stack.remove(self)

    @property
    def on_top(self) -> bool:
        """Whether it is the one that rules."""
        stack = _active.get(self._network, [])
        return bool(stack) and stack[-1] is self

    def _read(self) -> list[tuple[weakref.ref[nn.Module], bool]]:
        modules = (*self._wrappers, *self._network.modules())
        return [(weakref.ref(module), module.training) for module in modules]

    def _apply(self) -> None:
        network = self._network
        norms = [norm.module for norm in find_norms(network) if norm.states.unsupported is None]
        keepers = [*norms]
        for module in network.modules():
            sure = calls_norm(module) or writes_statistics(module)
            if sure or (may_write_statistics(module) and not makes_noise(module)):
                keepers.append(module)
        keepers = list({id(module): module for module in keepers}.values())
        # Those that are in eval mode while the model trains, and those that its own train() holds there.
        frozen = {id(module) for module in keepers if network.training and not module.training}
        network.train(True)
        live = [module for module in keepers if module.training and id(module) not in frozen]
        ruled = live if self._batch else keepers
        both: list[nn.Module] = []
        if self._noise != self._batch:
            both = [module for module in ruled if makes_noise(module)]
            ruled = [module for module in ruled if not any(module is one for one in both)]
            self._refuse([module for module in both if not calls_norm(module)])
        set_flags(
            network,
            self._noise,
            training=ruled if self._batch else (),
            evaluation=[*([] if self._batch else ruled), *(m for m in keepers if id(m) in frozen)],
        )
        for wrapper in self._wrappers:
            wrapper.training = self._noise
        learning = {id(module) for module in live}
        means = [getattr(m, "running_mean", None) for m in keepers if id(m) not in learning]
        for module in both:
            self._hook(module, [mean for mean in means if isinstance(mean, Tensor)])

    def _refuse(self, modules: Collection[nn.Module]) -> None:
        if not modules:
            return
        names = [name for name, module in self._network.named_modules() if any(module is m for m in modules)]
        cls = type(next(iter(modules))).__name__
        raise ModelError(
            f"module '{names[0]}' ({cls}) keeps statistics and makes noise by one training flag, so that "
            "noise and norms cannot be switched apart: give the noise a module of its own."
        )

    def _hook(self, module: nn.Module, exempt: Collection[Tensor]) -> None:
        """Has a module that makes noise call its norm with the other flag."""
        switches: list[_NormCalls] = []

        def enter(module: nn.Module, args: Any) -> None:
            switch = _NormCalls(module, self._batch, exempt, acts=self.on_top)
            switches.append(switch)
            switch.__enter__()

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if switches:
                switches.pop().__exit__(None, None, None)

        self._handles.append(module.register_forward_pre_hook(enter))
        self._handles.append(module.register_forward_hook(leave, always_call=True))

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _restore(self) -> None:
        self._remove_hooks()
        flags = [(module, flag) for ref, flag in self._flags if (module := ref()) is not None]
        root = next((flag for module, flag in flags if module is self._network), True)
        try:
            self._network.train(root)  # what its own train() and eval() do besides
        finally:
            for module, flag in flags:
                module.training = flag


class _NormCalls(TorchFunctionMode):
    """Has the norms that one module calls use the statistics of the batch, or not, whatever it asks for.

    Args:
        module: The module.
        batch: Which of the two. Without the batch's nothing that it holds changes, no counter either.
        exempt: Running means of norms that do not learn.
        acts: Whether to do anything at all.
    """

    def __init__(self, module: nn.Module, batch: bool, exempt: Collection[Tensor], *, acts: bool) -> None:
        super().__init__()
        self._batch, self._exempt, self._acts = batch, exempt, acts
        self._kept: list[tuple[Tensor, Tensor]] = []
        if acts and not batch:
            self._kept = [(buffer, buffer.clone()) for buffer in module.buffers(recurse=False)]

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        with torch.no_grad():
            for buffer, value in self._kept:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        flag = _FLAGS.get(func)
        if flag is None or not self._acts:
            return func(*args, **kwargs)
        bound = _signature(func).bind(*args, **kwargs)
        mean = bound.arguments.get("running_mean")
        if not any(mean is own for own in self._exempt):
            bound.arguments[flag] = self._batch
        return func(*bound.args, **bound.kwargs)


_FLAGS = {F.batch_norm: "training", F.instance_norm: "use_input_stats"}


@cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def _wrappers(model: nn.Module) -> list[nn.Module]:
    """The wrappers around a network, outermost first."""
    found = []
    while (inner := inside_wrapper(model)) is not None and inner is not model:
        found.append(model)
        model = inner
    return found
