"""Writes the table of samplers in docs/samplers.md, from the facts in each sampler's class.

    python docs/samplers_table.py

`tests/test_samplers_table.py` compares the table with what this makes.
"""

from pathlib import Path

from cmjax.schedulers import SCHEDULERS

PAGE = Path(__file__).parent / "samplers.md"
BEGIN = "<!-- made by docs/samplers_table.py -->\n"
END = "<!-- end -->\n"
COLUMNS = {
    "the network predicts": "predicts",
    "levels": "levels",
    "order": "order",
    "calls": "calls",
    "memory": "memory",
    "fresh noise": "noise",
    "paper": "paper",
}


def table() -> str:
    """Returns the table in Markdown, a row for each registered sampler."""
    lines = [["scheduler", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    for name, cls in SCHEDULERS.items():
        facts = [getattr(cls.facts, fact) for fact in COLUMNS.values()]
        lines.append([f"`{name}`", *facts])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def with_table(page: str) -> str:
    """Returns a page of Markdown with the table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + END + after


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
