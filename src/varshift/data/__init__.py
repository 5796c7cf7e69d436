"""The papers' samplers and sample weights."""

from __future__ import annotations

from varshift.data._fingerprint import BatchFingerprint as BatchFingerprint
from varshift.data._reuse import BatchReuse as BatchReuse
from varshift.data._reuse import batch_reuse as batch_reuse
from varshift.data._shuffle import RandomReshuffleSampler as RandomReshuffleSampler
from varshift.data._shuffle import SingleShuffleSampler as SingleShuffleSampler
from varshift.data._shuffle_distributed import (
    DistributedRandomReshuffleSampler as DistributedRandomReshuffleSampler,
)
from varshift.data._shuffle_distributed import (
    DistributedSingleShuffleSampler as DistributedSingleShuffleSampler,
)
