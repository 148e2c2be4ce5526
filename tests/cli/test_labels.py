"""`--labels 0-9`, and the short options, which mean the same for every command."""

import click
import pytest

from cmjax.cli import checks, main

SHORT = {"-n": "--num", "-l": "--labels", "-o": "--out", "-m": "--model", "-s": "--steps"}


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["0-9"], None, list(range(10))),
        (["8-9", "0", "3-3"], None, [8, 9, 0, 3]),
        # As single labels, the numbers of a range are names first.
        (["1-2"], ("0", "1", "10", "2"), [1, 3]),
        (["cat", "0-1"], ("0-1", "cat", "x"), [1, 0]),
    ],
)
def test_a_range_is_short_for_its_numbers(labels, names, expected):
    num_classes = 10 if names is None else len(names)
    assert checks.check_labels(labels, num_classes, names) == expected


@pytest.mark.parametrize(
    ("label", "error"),
    [
        ("9-0", "--labels: a range ascends, such as 0-9, got 9-0"),
        ("0-999999999", "fewer than the range 0-999999999"),
        ("5-12", "--labels: the model's classes are 0..9, got 10"),
        ("1-2-3", "--labels: "),
    ],
)
def test_a_wrong_range_is_an_error(label, error):
    with pytest.raises(ValueError, match=error):
        checks.check_labels([label], 10)


@pytest.mark.parametrize("labels", [["0"], ["0-2"], ["1", "0"]])
def test_numbers_are_names_where_classes_are_named_by_numbers(labels):
    # Otherwise 0 would be the class "1", and 0-2 two classes of the three.
    with pytest.raises(ValueError, match="--labels: there is no class '0'"):
        checks.check_labels(labels, 3, ("1", "10", "2"))
    assert checks.check_labels(["1-2", "10"], 3, ("1", "10", "2")) == [0, 2, 1]


def test_a_model_without_classes_takes_no_range():
    with pytest.raises(ValueError, match="--labels: the model has no classes"):
        checks.check_labels(["0-9"], None)


def commands(group, path=()):
    """Every command below a group, with the words that call it."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize(
    "command",
    [pytest.param(command, id=" ".join(path)) for path, command in commands(main)],
)
def test_short_options_mean_the_same_everywhere(command):
    for param in command.params:
        if isinstance(param, click.Option):
            # Long names come first: they are those that errors give.
            long, *shorts = param.opts
            assert shorts == [short for short, name in SHORT.items() if name == long]
