"""The one place that knows a live torch model: unwrapping, its norms, guarding its state, and its batches."""

from varshift._sites import SiteId as SiteId
from varshift._sites import Source as Source
from varshift.model._batches import Forward as Forward
from varshift.model._batches import batch_size as batch_size
from varshift.model._batches import default_forward as default_forward
from varshift.model._batches import first_tensor as first_tensor
from varshift.model._batches import map_tensors as map_tensors
from varshift.model._batches import move as move
from varshift.model._batches import primary_output as primary_output
from varshift.model._batches import samples_in_lists as samples_in_lists
from varshift.model._batches import split_batch as split_batch
from varshift.model._batches import take_samples as take_samples
from varshift.model._facts import NormFacts as NormFacts
from varshift.model._guard import Snapshot as Snapshot
from varshift.model._guard import preserved as preserved
from varshift.model._guard import write as write
from varshift.model._network import network_of as network_of
from varshift.model._network import require_values as require_values
from varshift.model._norms import Norm as Norm
from varshift.model._norms import find_norms as find_norms
from varshift.model._norms import norm_facts as norm_facts
from varshift.model._unwrap import canonical_names as canonical_names
from varshift.model._unwrap import canonical_tensor as canonical_tensor
from varshift.model._unwrap import copy_model as copy_model
from varshift.model._unwrap import switches_quietly as switches_quietly
from varshift.model._unwrap import unwrap as unwrap
