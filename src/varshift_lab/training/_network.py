"""Which network is trained, as plain data."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from varshift_lab import networks
from varshift_lab.data import Images

# Arguments of this ending are mappings; a trial holds them as pairs.
_MAPPING = "_options"


@dataclass(frozen=True, slots=True)
class Network:
    """A network and its arguments; what follows from the data, such as the number of classes, is filled in.

    Attributes:
        family: A function of `varshift_lab.networks`, such as ``"preresnet"``, or any other one that builds a
            network, as ``"package.module:function"``.
        arguments: Names and values, sorted by name. Values are plain; a mapping such as ``norm_options`` is a
            tuple of pairs.

    Raises:
        ValueError: If there is no such function, or it takes no such argument.

    Example:
        >>> from varshift_lab.data import digit_images
        >>> from varshift_lab.training import Network
        >>> network = Network.of("preresnet", depth=8, dropout=0.5, placement="a")
        >>> network.build(digit_images()).conv1.in_channels
        1
    """

    family: str
    arguments: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        known = inspect.signature(self._builder()).parameters
        free = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
        unknown = [name for name, _ in self.arguments if name not in known and not free]
        if unknown:
            raise ValueError(
                f"{self.family} takes no argument {', '.join(unknown)}: it has {', '.join(known)}."
            )

    @classmethod
    def of(cls, family: str, **arguments: Any) -> Network:
        """A network by the arguments of its function."""
        return cls(family, tuple((name, _plain(value)) for name, value in sorted(arguments.items())))

    def build(self, images: Images) -> nn.Module:
        """Builds the network for these images, with weights from torch's random state."""
        builder = self._builder()
        _, channels, height, width = images.pixels.shape
        facts = {
            "num_classes": images.num_classes,
            "in_channels": channels,
            "in_features": channels * height * width,
            "image_size": height,
        }
        known = inspect.signature(builder).parameters
        asked = {
            name: dict(value) if name.endswith(_MAPPING) and value is not None else value
            for name, value in self.arguments
        }
        return builder(**{**{name: fact for name, fact in facts.items() if name in known}, **asked})

    def _builder(self) -> Callable[..., nn.Module]:
        if ":" not in self.family:
            found = getattr(networks, self.family, None)
            if inspect.isfunction(found):
                return found
            names = sorted(name for name, value in vars(networks).items() if inspect.isfunction(value))
            raise ValueError(
                f"family={self.family!r} is unknown: use one of {', '.join(names)}, or "
                "'package.module:function'."
            )
        try:
            found: Any = pkgutil.resolve_name(self.family)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"family={self.family!r} cannot be imported ({error}).") from None
        if not callable(found):
            raise ValueError(f"family={self.family!r} is no function that builds a network.")
        return found  # type: ignore[return-value]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple((name, _plain(one)) for name, one in sorted(value.items()))
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value
