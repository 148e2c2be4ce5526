"""The samplers that benchmarks/samplers.py compares, and the digits that each of them makes."""

import functools
from dataclasses import dataclass, field
from pathlib import Path

import cmjax
from cmjax import generation
from cmjax.generation import Request
from cmjax.schedulers import SCHEDULERS, TableScheduler, scheduler_like

DENOISER = Path(__file__).parents[1] / "examples" / "assets" / "digits_denoiser"

# Betas of which the last time is nearly EDM's sigma_max, and times that begin there.
OF_DISCRETE_TIMES = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "timestep_spacing": "trailing",
}

GROUPS = (
    "few steps, on the consistency model",
    "levels of EDM and of flow matching",
    "training times",
    "training times, exponential integrators",
    "with fresh noise",
)
EXPONENTIAL = ("DPMSolver", "UniPC", "DEIS")  # in a group apart, by the class's name
FLOW = "FlowMatch"


@dataclass(frozen=True)
class Row:
    """A sampler with its options: one of the compared."""

    label: str
    name: str
    options: dict = field(default_factory=dict)

    @property
    def group(self):
        """Which of `GROUPS` it is in."""
        cls = SCHEDULERS[self.name]
        if not cls.solves_ode:
            return GROUPS[0]
        if cls.facts.noise == "yes" or "Ancestral" in self.name:
            return GROUPS[4]
        if "beta_start" not in cls.__dataclass_fields__ and self.name != "IPNDMScheduler":
            return GROUPS[1]
        return GROUPS[3] if self.name.startswith(EXPONENTIAL) else GROUPS[2]

    @property
    def euler(self):
        """The label of Euler's method on the levels of this row; None where none compares."""
        if self.group in (GROUPS[0], GROUPS[4]):
            return None
        if self.name.startswith(FLOW):
            return "FlowMatchEulerDiscrete"
        return "EDMEuler" if self.group == GROUPS[1] else "EulerDiscrete"


def can_sample_digits(name):
    """Whether a sampler is part of the comparison, in which one network serves all.

    A network that takes two times is one of its own (CTM, flow maps), as is one of categories;
    steps upwards make noise of images, and RePaint's jumps are for filling in.
    """
    cls = SCHEDULERS[name]
    return (
        issubclass(cls, TableScheduler)
        and cls.num_times == 1
        and not cls.facts.levels.endswith("upwards")
        and "jumps" not in cls.facts.noise
    )


def rows():
    """Returns the rows; of a solver of several orders one for each, from order 2."""
    found = []
    for name in filter(can_sample_digits, SCHEDULERS):
        cls = SCHEDULERS[name]
        label = name.removesuffix("Scheduler").replace("CMStochasticIterative", "CM")
        options = [option for option in ("solver_order", "order") if hasattr(cls, option)]
        if not options:
            found.append(Row(label, name))
            continue
        highest = int(cls.facts.order.split(",")[0].split(" to ")[-1])
        for order in range(2, highest + 1):
            found.append(Row(f"{label} {order}", name, {options[0]: order}))
    return found


def chosen(only):
    """The rows whose label begins with one of some words, between commas; all for none."""
    words = tuple(only.split(","))
    return [row for row in rows() if row.label.startswith(words)]


@functools.cache
def loaded(path):
    """The model at a path, read once."""
    return cmjax.load(path)


def with_scheduler(row):
    """The model that a sampler runs, under that sampler."""
    cls = SCHEDULERS[row.name]
    model = loaded(DENOISER if cls.solves_ode else None)
    if isinstance(model.scheduler, cls) and not row.options:
        return model

    # The network's own levels, or training times that have nearly these.
    fields = cls.__dataclass_fields__
    if "beta_start" in fields:
        known = {key: value for key, value in OF_DISCRETE_TIMES.items() if key in fields}
        return model.with_scheduler(cls(**known, **row.options))
    scheduler = scheduler_like(model.scheduler, row.name, **row.options)
    return model.with_scheduler(scheduler)


def steps_within(scheduler, calls):
    """The most steps that make at most so many network calls, and these calls; None for none."""
    for steps in range(calls, 0, -1):
        try:
            made = scheduler.set_timesteps(steps).num_steps
        except ValueError:
            continue  # too few steps for this sampler
        if made <= calls:
            return steps, made
    return None


def generate(model, steps, labels):
    """Returns u8 images made in so many steps."""
    request = Request(num_inference_steps=steps, labels=labels)
    made = generation.generate(model, request, len(labels), batch_size=100)
    return made.images
