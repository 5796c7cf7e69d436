"""The papers' samplers and sample weights."""

from __future__ import annotations

from varshift.data._active_bias import ActiveBias as ActiveBias
from varshift.data._active_bias_sampler import ActiveBiasSampler as ActiveBiasSampler
from varshift.data._correct_probability import correct_probability as correct_probability
from varshift.data._epochs import EpochSampler as EpochSampler
from varshift.data._epochs import generator_of as generator_of
from varshift.data._epochs import sized as sized
from varshift.data._epochs import whole_seed as whole_seed
from varshift.data._fingerprint import BatchFingerprint as BatchFingerprint
from varshift.data._history import PredictionHistory as PredictionHistory
from varshift.data._indexed import IndexedDataset as IndexedDataset
from varshift.data._prediction_score import Score as Score
from varshift.data._prediction_score import prediction_score as prediction_score
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
