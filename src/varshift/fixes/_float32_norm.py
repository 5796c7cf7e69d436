"""The cure that keeps a norm in float32 within a network of half precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from varshift._sites import SiteId
from varshift.fixes._class_draft import ClassDraft
from varshift.fixes._edit import Change, Edit, edit
from varshift.fixes._edited_class import with_edit
from varshift.fixes._norm_edit import NormClassEdit
from varshift.fixes._norm_places import norm_places
from varshift.fixes._patient import Patient
from varshift.fixes._remedy import NoOptions, Remedy, remedy
from varshift.fixes._surgery import Refused, Surgery
from varshift.rules import Finding

_HALF = (torch.float16, torch.bfloat16)


@edit("keep-float32")
@dataclass(frozen=True, slots=True)
class KeepFloat32(NormClassEdit):
    """Turns the numbers of a norm into float32, and has it compute so."""

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Casts parameters and buffers, and lets the forward cast what it is called with.

        Torch's batch norm computes in float32 by itself where its own numbers are in float32.
        """
        module = surgery.module(self.path, self.cls)
        types = {t.dtype for t in (*module.parameters(), *module.buffers()) if t.dtype in _HALF}
        if not types:
            raise Refused(f"module '{self.path}' ({self.cls}) holds no half-precision numbers.")
        for part in module.modules():
            for name, parameter in list(part._parameters.items()):
                if parameter is not None and parameter.dtype in _HALF:
                    raised = nn.Parameter(parameter.detach().float(), parameter.requires_grad)
                    surgery.replace_parameter(part, name, raised)
            for name, buffer in list(part._buffers.items()):
                if buffer is not None and buffer.dtype in _HALF:
                    surgery.set(part, name, buffer.float())
        if type(module).forward is not _BatchNorm.forward:
            surgery.set_class(module, with_edit(module, self))
        before = ", ".join(sorted(str(one).removeprefix("torch.") for one in types))
        return (Change(self.site, f"{self.cls} in {before}", f"{self.cls} in float32", "call", self.source),)

    def build(self, draft: ClassDraft) -> None:
        """Casts a half-precision input of the forward to float32, and its output back."""
        draft.wrap_forward(_in_float32)


def _in_float32(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def raised(self: nn.Module, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        if input.dtype not in _HALF:
            return forward(self, input, *args, **kwargs)
        output = forward(self, input.float(), *args, **kwargs)
        return output.to(input.dtype) if isinstance(output, Tensor) else output

    return raised


@remedy
class KeepFloat32Remedy(Remedy):
    """Keeps norms in float32, statistics and arithmetic, whatever the rest of the network computes in."""

    code = "keep-float32"
    answers = ("VS203", "VS206")
    safety = "safe"
    restates = True

    def plan(
        self, patient: Patient, sites: Sequence[SiteId], options: NoOptions, finding: Finding | None
    ) -> Sequence[Edit]:
        """One edit for each norm that holds numbers of half precision."""
        edits = []
        for place in norm_places(patient, sites):
            tensors = (*place.module.parameters(), *place.module.buffers())
            if not any(tensor.dtype in _HALF for tensor in tensors):
                continue
            if not place.path:
                raise Refused("the norm is the model itself: call model.float() and use torch.autocast.")
            edits.append(KeepFloat32.of(place))
        if not edits:
            raise Refused("no norm holds numbers of half precision.")
        return edits
