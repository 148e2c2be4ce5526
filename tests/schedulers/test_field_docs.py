"""Docstrings of classes that inherit fields: each field is explained, and written about once."""

import dataclasses

from cmjax.schedulers.field_docs import inherit_field_docs


@dataclasses.dataclass(frozen=True)
class Family:
    """A family.

    Attributes:
        first: of two
            lines.
        second: as the family has it.

    Raises:
        ValueError: for errors.
    """

    first: int = 1
    second: int = 2


def test_a_member_explains_its_own_fields_and_those_of_its_family():
    @inherit_field_docs
    @dataclasses.dataclass(frozen=True)
    class Member(Family):
        """A member.

        Attributes:
            third: its own.
            second: as the member has it.

        Example:
            Member()
        """

        third: int = 3
        second: int = 4

    assert Member.__doc__ == (
        "A member.\n\nAttributes:\n    first: of two\n        lines.\n"
        "    second: as the member has it.\n    third: its own.\n\nExample:\n    Member()"
    )
    assert [field.name for field in dataclasses.fields(Member)] == [
        "first",
        "second",
        "third",
    ]


def test_a_member_without_fields_of_its_own_explains_those_of_its_family():
    @inherit_field_docs
    @dataclasses.dataclass(frozen=True)
    class Member(Family):
        """A member."""

    assert Member.__doc__ == (
        "A member.\n\nAttributes:\n    first: of two\n        lines.\n"
        "    second: as the family has it."
    )
