"""How many workers, and on which device each."""

from __future__ import annotations

import os


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def places(executor: str, device: str, workers: int | None, trials: int) -> list[str]:
    """The device of each worker; no more workers than there are trials.

    Args:
        executor: Name of the executor; what other machines have is not known here.
        device: Device asked for; ``cuda`` stands for all GPUs in turn.
        workers: Workers asked for; by default one for each core or GPU of this machine, one elsewhere.
        trials: Number of trials that wait.
    """
    local = executor == "local"
    devices = _all_gpus() if local and device == "cuda" else [device]
    if workers is None:
        workers = (cores() if device == "cpu" else len(devices)) if local else 1
    return [devices[place % len(devices)] for place in range(max(1, min(workers, trials)))]


def _all_gpus() -> list[str]:
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cuda"]
