"""The runner: workers that empty the queue, and the engines that start them."""

from __future__ import annotations

from ._assignment import Assignment as Assignment
from ._errors import RunnerError as RunnerError
from ._executor import Crew as Crew
from ._executor import Executor as Executor
from ._executor import executor as executor
from ._executor import executor_names as executor_names
from ._run import run as run
from ._tensorboard import check_board as check_board
from ._work import work as work
