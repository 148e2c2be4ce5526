"""Classes of a conditional model, given by number or by name."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from cmjax.arrays import concrete
from cmjax.configs import did_you_mean, is_int

Labels = int | str | Sequence[int | str] | np.ndarray | jax.Array | None


def class_indices(
    labels: Labels, num_classes: int | None, class_names: Sequence[str] | None = None
) -> list[int] | None:
    """Returns the numbers of the classes that labels ask for.

    Args:
        labels: a number, a name, or several of these; None is all classes.
        num_classes: of the model; None for a model without classes.
        class_names: one name per class, or None.

    Returns:
        The numbers, as `class_labels` has them; None for a model without classes.

    Raises:
        ValueError: if the model has no such class, or no classes at all.
    """
    if num_classes is None:
        if labels is not None:
            raise ValueError("labels: the model has no classes; leave them out")
        return None
    if labels is None:
        return list(range(num_classes))
    given = _as_list(labels)
    if not given:
        raise ValueError("labels: give at least one class, or None for all")
    return [_class_index(label, num_classes, class_names or ()) for label in given]


def check_class_names(names: Any, num_classes: int | None) -> None:
    """Checks that `names` is a tuple of one distinct name per class.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(names, tuple) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"class_names must be a tuple of names, got {names!r:.200}")
    if len(names) != num_classes:
        raise ValueError(f"class_names has {len(names)} names for {num_classes} classes")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"class_names has the name {name!r} {count} times")


def describe_classes(num_classes: int | None, class_names: Sequence[str] | None) -> str:
    """Returns such as "3 classes (cats, dogs, mice)", with the first few names."""
    if num_classes is None:
        return "no classes"
    if class_names is None:
        return f"{num_classes} classes"
    shown = ", ".join(class_names[:8])
    more = ", ..." if len(class_names) > 8 else ""
    return f"{num_classes} classes ({shown}{more})"


def _as_list(labels: Any) -> list[Any]:
    """Returns one label, an array of them or a sequence of them as a list."""
    if isinstance(labels, str):
        return [labels]
    if isinstance(labels, (jax.Array, np.ndarray)):
        known = concrete(labels)
        if known is None:
            raise ValueError("labels: traced ones go into cond={'class_labels': labels}")
        return known.reshape(-1).tolist()
    return list(labels) if isinstance(labels, Sequence) else [labels]


def _class_index(label: Any, num_classes: int, names: Sequence[str]) -> int:
    if not isinstance(label, str):
        if not is_int(label, 0, num_classes - 1):
            raise ValueError(f"labels: the model's classes are 0..{num_classes - 1}, got {label!r}")
        return int(label)
    if label in names:
        return list(names).index(label)
    if not names:
        raise ValueError(
            f"labels: the model's classes have no names; give numbers 0..{num_classes - 1}, "
            f"got {label!r}"
        )
    hint = did_you_mean(label, list(names))
    raise ValueError(f"labels: there is no class {label!r}{hint:.1000}")
