"""The store: a resumable queue of trials in SQLite, and a log of events for each of them, in one folder."""

from __future__ import annotations

from ._errors import ClaimLostError as ClaimLostError
from ._errors import StoreError as StoreError
from ._log import Log as Log
from ._log import read_log as read_log
from ._owner import Owner as Owner
from ._provenance import provenance as provenance
from ._queue import Queue as Queue
from ._records import Claimed as Claimed
from ._records import Progress as Progress
from ._records import Result as Result
from ._records import Run as Run
from ._records import State as State
from ._store import Store as Store
