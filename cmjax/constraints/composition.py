"""Several constraints, one after the other."""

import dataclasses
import functools
from typing import Any

import jax

from cmjax.configs import shown
from cmjax.constraints.checks import check_callable
from cmjax.schedulers.base import Constraint
from cmjax.serialization import serializable
from cmjax.tracing import as_pytree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Compose:
    """Applies constraints in turn; made by `compose`.

    Attributes:
        constraints: in the order in which they are applied.
    """

    constraints: tuple[Constraint, ...]

    def __call__(self, x0: jax.Array) -> jax.Array:
        """Returns `x0`, `[B, ...]`, after all constraints."""
        return functools.reduce(lambda x, constraint: constraint(x), self.constraints, x0)

    def certain(self) -> "Compose":
        """Returns the constraints without what they keep in part only."""
        return Compose(tuple(map(certain, self.constraints)))

    def kept_in_part(self) -> "Compose":
        """Returns only what the constraints keep in part."""
        return Compose(tuple(map(kept_in_part, self.constraints)))

    def measure(self, x0: jax.Array) -> tuple[Any, ...]:
        """Returns what each constraint compares with its own data, a pytree for each."""
        return tuple(measurable(each).measure(x0) for each in self.constraints)

    def shifted(self, shift: tuple[Any, ...]) -> "Compose":
        """Returns the constraints for their own data plus `shift`, a pytree for each."""
        shifted = []
        for constraint, own_shift in zip(self.constraints, shift, strict=True):
            shifted.append(measurable(constraint).shifted(own_shift))
        return Compose(tuple(shifted))


serializable(Compose)


def compose(*constraints: Constraint) -> Compose:
    """Applies constraints from left to right.

    The last one holds exactly; the others hold where later ones do not undo them.

    Args:
        *constraints: functions x0 -> x0.

    Raises:
        ValueError: if one is not a function.
    """
    check_callable(
        **{f"constraints[{i}]": constraint for i, constraint in enumerate(constraints)}
    )
    return Compose(tuple(as_pytree(constraint) for constraint in constraints))


def certain(constraint: Any) -> Any:
    """Returns a constraint without what it keeps in part only, such as the soft edge of a mask.

    Such a part has no value that a sample could be moved to: applied again and again, the weighted
    mean of an image and a sample becomes the image, whatever the weight.
    """
    return constraint.certain() if hasattr(constraint, "certain") else constraint


def kept_in_part(constraint: Any) -> Constraint:
    """Returns only what a constraint keeps in part, such as the soft edge of a mask."""
    return constraint.kept_in_part() if hasattr(constraint, "kept_in_part") else _unchanged


def _unchanged(x0):
    """The constraint that keeps nothing."""
    return x0


def measurable(constraint: Any) -> Any:
    """Returns a constraint that knows its data: one with `measure` and `shifted`.

    Raises:
        ValueError: for a function of another kind.
    """
    if not hasattr(constraint, "measure") or not hasattr(constraint, "shifted"):
        raise ValueError(
            "sigma_y needs a constraint that knows its data, such as what inpaint, observe, "
            f"colorize or super_resolve return, got {shown(constraint)}"
        )
    return constraint
