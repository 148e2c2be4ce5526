"""Progress of a run: a bar for people, lines of JSON for programs."""

import contextlib
import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax

from cmjax.files import append
from cmjax.generation.shards import Shards
from cmjax.progress import Bar

STOPPING = "Stopping after the batches in progress; a second signal stops at once."

# Minimum seconds between two updates of the bar, each of which lists the folder.
REFRESH = 0.5


class Log:
    """Appends events as lines of JSON to `log.jsonl` on process 0, `log-1.jsonl` on process 1, ...

    Args:
        folder: the folder of the run.
    """

    def __init__(self, folder: Path):  # noqa: D107
        # A file for each process: appends of several machines to one file can be lost.
        process = jax.process_index()
        self._path = folder / ("log.jsonl" if process == 0 else f"log-{process}.jsonl")

    def __call__(self, event: str, **values: Any) -> None:
        """Adds an event with its values, which must be what JSON can hold.

        Raises:
            OSError: if the line cannot be written.
        """
        # UTC, so that the logs of machines in different time zones can be merged.
        line = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(),
            "event": event,
            **values,
        }
        append(self._path, json.dumps(line))


class Progress:
    """A progress bar over the records of all processes, and the log of this process.

    Args:
        shards: the shards of the run.
        num: number of records of the run.
        num_resumed: number of records that were in the folder before.
        mine: the shards that this process is to make.
        shown: whether to show the bar. Only process 0 has one.
        doing: what is being done, such as "sampling".
        unit: what is counted, in the singular.

    Attributes:
        log: the log of this process.
        num_made: number of records that this process has made and written.
    """

    def __init__(  # noqa: D107
        self,
        shards: Shards,
        num: int,
        num_resumed: int,
        mine: list[range],
        shown: bool,
        doing: str,
        unit: str,
    ):
        self.log = Log(shards.folder)
        self.num_made = 0
        self._shards = shards
        self._num = num
        self._num_mine = sum(map(len, mine))
        self._doing = doing

        # A run that finds all of its records has no bar.
        is_shown = shown and sys.stderr is not None and jax.process_index() == 0
        if is_shown and num_resumed:
            there = f"{num_resumed:,} of {num:,} {unit}s were there already."
            print(there, file=sys.stderr)

        # Records that were there before do not count in the rate that the bar shows.
        self._shown = is_shown and num_resumed < num
        self._bar = Bar(
            num, done=num_resumed, unit=unit, doing="compiling", shown=self._shown
        )

        # The clock starts with compilation, and again with the work; see `compiled`.
        self._begin = time.perf_counter()
        self._refreshed = self._begin

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self._bar.__exit__(kind, error, traceback)
        if error is not None:
            # If the disk is full the log cannot be written either: keep the first error.
            with contextlib.suppress(OSError):
                self.log("failed", error=str(error) or kind.__name__)

    def stopping(self) -> None:
        """Tells the user that a signal has arrived; any thread may call it."""
        self._bar.say(STOPPING)

    @property
    def seconds(self) -> float:
        """Seconds since the program was compiled; before that, since the start."""
        return time.perf_counter() - self._begin

    def compiled(self) -> None:
        """Notes that the program is compiled, and starts the clock of the work."""
        self.log("compiled", seconds=self.seconds)
        self._bar.begin(self._doing)
        self._begin = time.perf_counter()

    def written(self, shard: range) -> None:
        """Counts and logs a shard that this process has written.

        The log line has this process's records per second, `rate`, and its remaining seconds,
        `eta`.
        """
        self.num_made += len(shard)

        # Both are of this process alone: others may be slower, and log their own.
        rate = self.num_made / self.seconds
        eta = (self._num_mine - self.num_made) / rate
        numbers = {"first": shard.start, "count": len(shard)}
        self.log("shard", **numbers, rate=round(rate, 2), eta=round(eta, 1))

        # The bar counts the files of all processes, and listing a network folder is slow.
        if self._shown and time.perf_counter() - self._refreshed > REFRESH:
            self.refresh()

    def finishing(self) -> None:
        """Notes that all records are made, and that results are being written."""
        self._bar.describe("writing")

    def refresh(self) -> int:
        """Returns how many records all processes have written, and moves the bar there."""
        self._refreshed = time.perf_counter()
        num_done = self._shards.count(self._num)
        self._bar.advance_to(num_done)
        return num_done
