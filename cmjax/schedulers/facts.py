"""What a reader compares samplers by; `docs/samplers.md` is made from it."""

import dataclasses
from typing import Any, Self


@dataclasses.dataclass(frozen=True)
class Facts:
    """The facts about a sampler that its docs list, kept next to its code.

    Attributes:
        predicts: what the network predicts.
        levels: the noise levels of a run.
        order: the order of convergence to the solution of the ODE or SDE; "–" if each step jumps.
        calls: network calls of a step.
        memory: number of arrays of the size of the sample that are kept between calls, a number or
            a range such as "0 to 3".
        noise: whether steps add fresh noise, "yes" or "no", or with which options they do.
        paper: the source.
    """

    predicts: str = ""
    levels: str = ""
    order: str = "–"
    calls: str = "1"
    memory: str = "0"
    noise: str = "no"
    paper: str = ""

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with the named facts changed, such as those of a family."""
        return dataclasses.replace(self, **changes)
