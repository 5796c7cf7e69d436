"""Plans of what is done to timm's networks, made with the version of timm that this process imports.

A program: it reads titles and cures from the standard input and prints a line of JSON for each.
"""

from __future__ import annotations

import functools
import json
import sys
import warnings
from typing import Any

import torch

import varshift as vs
from _survey_rows import settled
from _surveyed_network import Network, images
from _surveyed_zoo import timm_attempts
from varshift.flow import Capture, NoiseSite, capture
from varshift.integrations import declare_torchvision_operators

SAMPLES = 2


def noises(captured: Capture) -> dict[str, NoiseSite]:
    """The noise sites of a capture by name."""
    flows = (captured.eval, captured.train)
    return {str(site.id): site for flow in flows if flow is not None for site in flow.noises}


def function_of(site: NoiseSite) -> str:
    """The function that makes a noise."""
    return site.calls[-1].function if site.calls else ""


def plan_row(title: str, cures: Any) -> dict[str, Any]:
    """One network: how it was built, its noise, and the plan."""
    network = Network(f"timm/{title}", "timm", functools.partial(timm_attempts, title), images(3))
    built, batches, size = settled(network, SAMPLES)
    cured = vs.fix(built.model, example_inputs=batches[0][0], cures=cures, recheck=False)
    sites = noises(capture(built.model, batches[0][0]))
    return {
        "settings": built.settings,
        "size": size,
        "sites": {name: [site.kind, site.rate, function_of(site)] for name, site in sites.items()},
        "planned": [str(change.site) for change in cured.changes],
        "left": [*map(str, cured.failures), *cured.notes],
        "plan": cured.plan.to_json(),
    }


def main() -> None:
    """A plan for every line."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    declare_torchvision_operators()
    import timm

    for line in sys.stdin:
        task = json.loads(line)
        row = {"timm": timm.__version__, "title": task["title"]}
        try:
            row |= plan_row(task["title"], task["cures"])
        except Exception as error:  # a crash is what the benchmark looks for
            row["error"] = f"{type(error).__name__}: {error}"[:300]
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
