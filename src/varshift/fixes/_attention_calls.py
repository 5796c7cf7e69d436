"""The calls inside torch's own attention layer that make its noise."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from varshift.fixes._edited_class import user_class
from varshift.fixes._source_code import CallPlace, FunctionSource, called_name, calls_in, source_of
from varshift.fixes._surgery import Refused

_NOISY = ("scaled_dot_product_attention", "dropout")


def attention_chains(module: nn.Module) -> tuple[tuple[CallPlace, ...], ...]:
    """For a ``nn.MultiheadAttention``, the calls that draw its dropout, one for each way that it computes.

    Args:
        module: The module; any other one, and one with a forward of its own, has none.

    Returns:
        Chains of calls as `RewriteCall` takes them, from ``MultiheadAttention.forward`` inwards.
    """
    layer = nn.MultiheadAttention
    if not isinstance(module, layer) or user_class(module).forward is not layer.forward:
        return ()
    try:
        forward = source_of(layer.forward)
        helper = source_of(nn.functional.multi_head_attention_forward)
    except Refused:  # a build of torch without its sources
        return ()
    outer = list(_calls(forward, ("multi_head_attention_forward",)))
    if len(outer) != 2:  # one for projections of different widths, one for those of the same
        return ()
    chosen = outer[1] if module._qkv_same_embed_dim else outer[0]
    return tuple((chosen, inner) for inner in _calls(helper, _NOISY))


def _calls(source: FunctionSource, names: tuple[str, ...]) -> Iterator[CallPlace]:
    """The calls of functions of some names, in the order of the text."""
    calls = [call for call in calls_in(source.node) if called_name(call) in names]
    for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
        yield source.place(call)
