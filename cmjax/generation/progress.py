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


class Log:
    """Lines of JSON: `log.jsonl`, of other processes than the first `log-1.jsonl` and so on."""

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
        resumed: how many of them were there already.
        mine: the shards that this process is to make.
        shown: whether there is to be a bar.

    Attributes:
        made: how many this process has made and written.
    """

    def __init__(self, shards: Shards, num: int, resumed: int, mine: list[range], shown: bool):  # noqa: D107
        self.log, self.made = Log(shards.folder), 0
        self._shards, self._num, self._mine = shards, num, sum(map(len, mine))
        hidden = not shown or jax.process_index() > 0 or resumed == num
        self._bar = tqdm(
            total=num,
            initial=resumed,
            desc="compiling",
            unit="sample",
            dynamic_ncols=True,
            disable=hidden,
        )
        self._begin = self._refreshed = time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self._bar.close()
        if error is not None:
            with contextlib.suppress(OSError):  # the disk may be full
                self.log("failed", error=str(error) or kind.__name__)

    @property
    def seconds(self) -> float:
        """Since the program was compiled."""
        return time.perf_counter() - self._begin

    def compiled(self) -> None:
        """From now on, time is that of sampling."""
        self.log("compiled", seconds=self.seconds)
        self._bar.set_description("sampling")
        self._bar.unpause()
        self._begin = time.perf_counter()

    def written(self, shard: range) -> None:
        """Counts a shard that this process has written; `rate` is its samples a second, `eta` its seconds to go."""
        self.made += len(shard)
        rate = self.made / self.seconds
        eta = (self._mine - self.made) / rate
        self.log(
            "shard", first=shard.start, count=len(shard), rate=round(rate, 2), eta=round(eta, 1)
        )
        if (
            not self._bar.disable and time.perf_counter() - self._refreshed > 0.5
        ):  # it lists the folder
            self.refresh()

    def sampled(self) -> None:
        """All is sampled; the result is being written."""
        self._bar.set_description("writing")

    def refresh(self) -> int:
        """Moves the bar to what all processes have written, and returns it."""
        self._refreshed, done = time.perf_counter(), self._shards.count(self._num)
        self._bar.update(done - self._bar.n)
        return done
