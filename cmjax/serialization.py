"""Lets `jax.export` serialize functions that take or return pytrees of cmjax."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import jax.export


def serializable(
    *classes: type,
    to_json: Callable[[Any], Any] = lambda value: value,
    from_json: Callable[[Any], Any] = lambda value: value,
) -> None:
    """Registers pytrees with `jax.export`, each under the name "cmjax." and that of its class.

    A serialized function holds the structure of its arguments and results, with all that is static
    in them. To read it, the same classes must have been registered before.

    Args:
        classes: named tuples, or dataclasses that are pytrees.
        to_json: what JSON can hold of the value of a static field.
        from_json: the value again.
    """

    # What is static in a dataclass is a tuple of the values of its static fields.
    def written(static: Any) -> bytes:
        return json.dumps([to_json(value) for value in static]).encode()

    def read(text: bytes) -> tuple[Any, ...]:
        return tuple(from_json(value) for value in json.loads(text))

    for cls in classes:
        name = f"cmjax.{cls.__name__}"

        # A module that is reloaded makes its classes again, and JAX registers no name twice.
        with contextlib.suppress(ValueError):
            if issubclass(cls, tuple):
                jax.export.register_namedtuple_serialization(cls, serialized_name=name)
            else:
                jax.export.register_pytree_node_serialization(
                    cls,
                    serialized_name=name,
                    serialize_auxdata=written,
                    deserialize_auxdata=read,
                )
