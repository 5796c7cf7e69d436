"""Which parameters, or which modules, a part leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from varshift.model import inside_wrapper

Excluded = Callable[[str, Any], bool] | Iterable[nn.Module | Tensor | str] | nn.Module | Tensor | str | None


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside what data parallelism and the compiler wrap around it, so that names are the user's.

    Raises:
        ValueError: If it is wrapped in `torch.nn.DataParallel`, whose copies of the layers come and go.
    """
    while True:
        if isinstance(model, nn.DataParallel):
            raise ValueError("model is a DataParallel: use DistributedDataParallel, or give model.module.")
        inner = inside_wrapper(model)
        if inner is None:
            return model
        model = inner


class Exclusion:
    """A rule that says of a named parameter or module whether it is left alone.

    Args:
        excluded: A predicate of name and object; or one or several modules (with all that is inside),
            parameters and names. A name may have the wildcards of a shell: ``"fc.*"``.

    Raises:
        ValueError: If an item is none of these.
    """

    def __init__(self, excluded: Excluded) -> None:
        self._predicate: Callable[[str, Any], bool] | None = None
        self._ids: set[int] = set()
        self._kept: list[Any] = []  # so that no id is used twice
        self._patterns: dict[str, bool] = {}
        if excluded is None:
            return
        if isinstance(excluded, (str, nn.Module, Tensor)):
            excluded = [excluded]
        if callable(excluded):
            self._predicate = excluded
            return
        for item in excluded:
            if isinstance(item, str):
                self._patterns[item] = False
            elif isinstance(item, nn.Module):
                self._add(*item.modules(), *item.parameters())
            elif isinstance(item, Tensor):
                self._add(item)
            else:
                raise ValueError(
                    f"exclude has {item!r}: its items must be modules, parameters or names; "
                    "a rule of your own is a function of name and object."
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ids": set()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._ids = set(map(id, self._kept))  # a copy has other items

    def _add(self, *items: Any) -> None:
        self._kept.extend(items)
        self._ids.update(map(id, items))

    def __call__(self, name: str, item: Any) -> bool:
        """Whether this parameter or module is left alone."""
        if self._predicate is not None:
            return bool(self._predicate(name, item))
        if id(item) in self._ids:
            return True
        hit = False
        for pattern in self._patterns:
            if name and fnmatchcase(name, pattern):
                self._patterns[pattern] = hit = True
        return hit

    def require_all_used(self, names: Sequence[str]) -> None:
        """Raises ValueError when a name matched nothing: it is mistyped, or there are no names."""
        unused = [pattern for pattern, used in self._patterns.items() if not used]
        if not unused:
            return
        known = [name for name in names if name]
        remedy = (
            f"the names are {', '.join(known[:6])}{', ...' if len(known) > 6 else ''}"
            if known
            else "the parameters came without names: give the module or model.named_parameters()"
        )
        raise ValueError(f"exclude={unused[0]!r} matches nothing; {remedy}.")
