"""`cmjax schedulers`."""

import dataclasses
import json
import textwrap
from typing import TYPE_CHECKING, Any

import click

from cmjax.cli import option_types, options, terminal

if TYPE_CHECKING:
    from cmjax.schedulers import Scheduler

WIDTH = 100  # columns of a text
LISTED = ("order", "paper", "calls")  # facts in the list of all samplers


@click.command()
@click.argument(
    "name", metavar="[NAME]", required=False, shell_complete=option_types.complete_scheduler
)
@options.as_json
def schedulers(name: str | None, as_json: bool) -> None:
    """Lists the samplers, or describes one with its options.

    NAME is what cmjax sample --scheduler takes, and the options are those of its --set. The order
    is that of convergence to the solution of an ODE or SDE; the calls are network calls in a step.

    \b
    Examples:
      cmjax schedulers                   every sampler: order, paper, calls
      cmjax schedulers EDMHeunScheduler  what it is for, and each option with its
                                         default
      cmjax schedulers --json            the same list for programs
    """
    from cmjax.schedulers import SCHEDULERS

    if name is not None:
        described = _describe(name)
        report = _page(described)
    else:
        described = [{"name": key, **_facts(cls)} for key, cls in SCHEDULERS.items()]
        report = _table(described)
    if as_json:
        report = json.dumps(described, indent=2)
    terminal.echo(report)


def _facts(cls: type["Scheduler"]) -> dict[str, str]:
    """Returns the facts about a sampler by name."""
    facts = dataclasses.asdict(cls.facts)
    if "facts" not in vars(cls):
        # A class of the user's that says nothing of itself. Defaults would be claims.
        defaults = dataclasses.asdict(type(cls.facts)())
        for name, default in defaults.items():
            if facts[name] == default:
                facts[name] = "not given"
    return {name: _plain(fact) for name, fact in facts.items()}


def _plain(text: str) -> str:
    """Returns a text without the marks of Markdown, which a terminal shows as they are."""
    return text.replace("`", "")


def _describe(name: str) -> dict[str, Any]:
    """Returns name, description, facts and options of a sampler.

    Raises:
        ValueError: if there is no such sampler.
    """
    from cmjax.registry import scheduler_class
    from cmjax.schedulers.field_docs import field_docs, introduction

    cls: Any = scheduler_class(name)  # a dataclass, which `Scheduler` itself is not
    explanations = field_docs(cls)
    described = []
    for field in dataclasses.fields(cls):
        explanation = _plain(explanations.get(field.name, ""))
        option = {"name": field.name, "explanation": explanation}

        # A class of the user's own may have an option that must be given.
        if field.default is not dataclasses.MISSING:
            option["default"] = field.default
        described.append(option)
    return {
        "name": name,
        "description": _plain(introduction(cls)),
        **_facts(cls),
        "options": described,
    }


def _table(rows: list[dict[str, str]]) -> str:
    """Returns the samplers in columns, each as wide as its longest entry."""
    lines = [["name", *LISTED]]
    for row in rows:
        lines.append([row["name"], *(row[fact] for fact in LISTED)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for line in lines:
        cells = [f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)]
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)


def _page(described: dict[str, Any]) -> str:
    """Returns the description of one sampler, a paragraph for each of its options."""
    lines = [described["name"], "", described["description"], ""]

    # The facts in two columns, then the options.
    facts = [name for name in described if name not in ("name", "description", "options")]
    lines += [f"{fact:8}  {described[fact]}" for fact in facts]
    lines += ["", "Options, for --set KEY=VALUE:"]
    for option in described["options"]:
        value = "  (must be given)"
        if "default" in option:
            value = f"={json.dumps(option['default'], default=str)}"
        lines.append(f"  {option['name']}{value}")
        lines += textwrap.wrap(
            option["explanation"], WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return "\n".join(lines)
