"""Training: losses, curricula of noise levels, data, and a small trainer.

`cmjax.training.losses`, `discretization` and `trainer` are attributes; import the other modules by
name, since some of them need the extra `train`.
"""

from cmjax.training import discretization, losses, trainer

__all__ = ["discretization", "losses", "trainer"]
