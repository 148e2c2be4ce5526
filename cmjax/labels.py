"""Class labels, given by number or by name."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from cmjax.arrays import as_array, concrete
from cmjax.configs import did_you_mean, is_int, shown

# What users may pass as `labels`: one class, several, or None for all classes in turn.
Labels = int | str | Sequence[int | str] | np.ndarray | jax.Array | None


def class_indices(
    labels: Labels, num_classes: int | None, class_names: Sequence[str] | None = None
) -> list[int] | None:
    """Returns the class numbers for labels that are given by number or name.

    Args:
        labels: a number, a name, or several of these; None means all classes.
        num_classes: number of classes of the model; None for a model without classes.
        class_names: one name per class, or None.

    Returns:
        The class numbers, which the network takes as `class_labels`; None for a model without
        classes.

    Raises:
        ValueError: if the model has no such class, or no classes at all.
    """
    # Labels would not change what an unconditional model makes: asking for them is a mistake.
    if num_classes is None:
        if labels is not None:
            raise ValueError("labels: the model has no classes; leave them out")
        return None
    if not is_int(num_classes, 1):
        raise ValueError(
            f"num_classes must be a positive integer or None, got {shown(num_classes)}"
        )
    if class_names is not None:
        names = tuple(class_names) if isinstance(class_names, list) else class_names
        check_class_names(names, num_classes)
    if labels is None:
        return list(range(num_classes))

    # An empty list is neither "all classes" nor any class to repeat.
    given = _as_list(labels)
    if not given:
        raise ValueError("labels: give at least one class, or None for all")
    return [_class_index(label, num_classes, class_names or ()) for label in given]


def check_class_labels(name: str, labels: Any, num_classes: int) -> None:
    """Checks the array of classes that a network is conditioned on.

    A class that is not one of the network's would be looked up as another one, or as NaN.

    Args:
        name: the argument's name, for the error.
        labels: integers; traced values are not checked, since they are not known yet.
        num_classes: number of classes of the network.

    Raises:
        ValueError: unless they are integers, from 0 to `num_classes - 1`.
    """
    array = as_array(name, labels)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers, the classes, got {array.dtype}")
    known = concrete(array)
    if known is None:
        return
    wrong = known[(known < 0) | (known >= num_classes)]
    if wrong.size:
        raise ValueError(
            f"{name}: the model's classes are 0..{num_classes - 1}, got {wrong.flat[0]}"
        )


def check_null_class(null_class: bool, num_classes: int | None) -> None:
    """Raises ValueError for a class that stands for none of the classes, where there are none."""
    if null_class and num_classes is None:
        raise ValueError("null_class needs classes; set num_class_embeds to their number")


def check_class_names(names: Any, num_classes: int | None) -> None:
    """Checks that `names` is a tuple of one distinct name per class.

    Args:
        names: the names, in the order of the classes.
        num_classes: number of classes, or None for a model without classes.

    Raises:
        ValueError: if it is not.
    """
    # A tuple, not a list: names are static data of a pytree, which must be hashable.
    if not isinstance(names, tuple) or not all(
        isinstance(name, str) and name for name in names
    ):
        raise ValueError(f"class_names must be a tuple of names, got {shown(names)}")
    if not is_int(num_classes) or len(names) != num_classes:
        raise ValueError(
            f"class_names has {len(names)} names for {shown(num_classes)} classes"
        )

    if not names:
        raise ValueError("class_names must have at least one name; leave them out")

    # A name that occurs twice could not be asked for.
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"class_names has the name {name!r} {count} times")


def describe_classes(num_classes: int | None, class_names: Sequence[str] | None) -> str:
    """Returns a text such as "3 classes (cats, dogs, mice)", with the first few names."""
    if num_classes is None:
        return "no classes"
    if class_names is None:
        return f"{num_classes} classes"
    first = ", ".join(class_names[:8])
    more = ", ..." if len(class_names) > 8 else ""
    return f"{num_classes} classes ({first}{more})"


def _as_list(labels: Any) -> list[Any]:
    """Returns one label, or an array or sequence of labels, as a list."""
    # A string is a sequence too, of characters, and bytes of small numbers.
    if isinstance(labels, str | bytes):
        return [labels]
    if isinstance(labels, jax.Array):
        # Under `jax.jit` the values are not known, so that they cannot be checked here.
        labels = concrete(as_array("labels", labels))
        if labels is None:
            raise ValueError("labels: pass traced labels as cond={'class_labels': labels}")
    if isinstance(labels, np.ndarray):
        if labels.ndim > 1:
            raise ValueError(
                f"labels must be one class or a list, got shape {labels.shape}"
            )
        return labels.reshape(-1).tolist()
    return list(labels) if isinstance(labels, Sequence) else [labels]


def _class_index(label: Any, num_classes: int, names: Sequence[str]) -> int:
    """Returns the number of the class that one label names."""
    if not isinstance(label, str):
        if not is_int(label, 0, num_classes - 1):
            raise ValueError(
                f"labels: the model's classes are 0..{num_classes - 1}, got {shown(label)}"
            )
        return int(label)
    if label in names:
        return list(names).index(label)

    # An unknown name: say what would be known.
    if not names:
        raise ValueError(
            f"labels: the model's classes have no names; give numbers 0..{num_classes - 1}, "
            f"got {shown(label)}"
        )
    hint = did_you_mean(label, list(names))
    raise ValueError(f"labels: there is no class {shown(label)}{hint:.1000}")
