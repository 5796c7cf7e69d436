"""Watches a training from outside: what is read after its steps, without hooks, modes or passes."""

from varshift.monitor._recorder import Recorder as Recorder
from varshift.monitor._sink import Sink as Sink
from varshift.monitor._sink import as_sink as as_sink
from varshift.monitor._watch import Watch as Watch
