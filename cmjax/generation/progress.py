"""How far a run has come: a bar for people, lines of JSON for machines."""

import contextlib
import datetime
import json
import time
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from cmjax.files import append
from cmjax.generation.shards import Shards

REFRESH = 0.5  # seconds between two updates of the bar, for each of which the folder is listed


class Log:
    """Lines of JSON: `log.jsonl` of process 0, `log-1.jsonl` of process 1, and so on."""

    def __init__(self, folder: Path):  # noqa: D107
        process = jax.process_index()
        self._path = folder / ("log.jsonl" if process == 0 else f"log-{process}.jsonl")

    def __call__(self, event: str, **values: Any) -> None:
        """Adds a line."""
        line = {"time": datetime.datetime.now(datetime.UTC).isoformat(), "event": event, **values}
        append(self._path, json.dumps(line))


class Progress:
    """The bar of all processes' samples, on process 0, and the log of this one's.

    Args:
        shards: of the run.
        num: samples of the run.
        num_resumed: how many of them were there already.
        mine: the shards that this process is to make.
        shown: whether there is to be a bar.

    Attributes:
        log: of this process.
        num_made: how many samples this process has made and written.
    """

    def __init__(  # noqa: D107
        self, shards: Shards, num: int, num_resumed: int, mine: list[range], shown: bool
    ):
        self.log = Log(shards.folder)
        self.num_made = 0
        self._shards = shards
        self._num = num
        self._num_mine = sum(map(len, mine))
        self._bar = tqdm(
            total=num,
            initial=num_resumed,
            desc="compiling",
            unit="sample",
            dynamic_ncols=True,
            disable=not shown or jax.process_index() > 0 or num_resumed == num,
        )
        self._begin = time.perf_counter()
        self._refreshed = self._begin

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self._bar.close()
        if error is not None:
            with contextlib.suppress(OSError):  # the disk may be full
                self.log("failed", error=str(error) or kind.__name__)

    @property
    def seconds(self) -> float:
        """Since the program was compiled; before that, since the start."""
        return time.perf_counter() - self._begin

    def compiled(self) -> None:
        """Notes that the program is compiled; from now on, time is that of sampling."""
        self.log("compiled", seconds=self.seconds)
        self._bar.set_description("sampling")
        self._bar.unpause()
        self._begin = time.perf_counter()

    def written(self, shard: range) -> None:
        """Counts a shard that this process has written.

        The log gets the process's samples a second as `rate`, its seconds to go as `eta`.
        """
        self.num_made += len(shard)
        rate = self.num_made / self.seconds
        eta = (self._num_mine - self.num_made) / rate
        numbers = {"first": shard.start, "count": len(shard)}
        self.log("shard", **numbers, rate=round(rate, 2), eta=round(eta, 1))
        if not self._bar.disable and time.perf_counter() - self._refreshed > REFRESH:
            self.refresh()

    def sampled(self) -> None:
        """Notes that all is sampled and the result is being written."""
        self._bar.set_description("writing")

    def refresh(self) -> int:
        """Moves the bar to the number of samples that all processes have written; returns it."""
        self._refreshed = time.perf_counter()
        num_done = self._shards.count(self._num)
        self._bar.update(num_done - self._bar.n)
        return num_done
