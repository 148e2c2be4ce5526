"""What benchmarks/samplers.py measured: a file of figures, and the tables and plot of them."""

import csv
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from samplers_rows import GROUPS, rows

from cmjax.files import replacing

CALLS = (1, 2, 4, 8, 18)
NONE = "–"

# Between these lines of a page the tables are.
BEGIN = "<!-- made by benchmarks/samplers.py table -->\n"
END = "<!-- end -->\n"


@dataclass(frozen=True)
class Figure:
    """How good the digits of one sampler are in one number of calls."""

    sampler: str  # the label of its row
    calls: int  # network calls that were made
    num: int  # digits judged
    recognised: float  # share that the classifier takes for the class asked for
    distance: float  # Fréchet distance, as a share of that of noise

    def __post_init__(self):
        # A file holds text.
        for part in fields(self):
            object.__setattr__(self, part.name, part.type(getattr(self, part.name)))


def read_figures(path):
    """Returns the figures of a file by sampler and calls; none if there is no file."""
    path = Path(path)
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        figures = [Figure(**line) for line in csv.DictReader(file)]
    return {(figure.sampler, figure.calls): figure for figure in figures}


def write_figures(path, figures):
    """Writes figures to a CSV file, in the order of the samplers and of calls."""
    order = [row.label for row in rows()]
    text = io.StringIO()
    writer = csv.DictWriter(
        text, [part.name for part in fields(Figure)], lineterminator="\n"
    )
    writer.writeheader()
    for figure in sorted(figures.values(), key=lambda f: (order.index(f.sampler), f.calls)):
        writer.writerow(asdict(figure))
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def measured(figures, label, calls):
    """The figure of a sampler in at most so many calls, but more than in the column before."""
    before = max((column for column in CALLS if column < calls), default=0)
    for made in range(calls, before, -1):
        if (label, made) in figures:
            return figures[label, made]
    return None


def cell(figure, calls):
    """A figure as text: error and distance, and the calls if they are fewer than the column's."""
    if figure is None:
        return NONE
    text = f"{1 - figure.recognised:.1%} · {figure.distance:.2%}".replace("%", "")
    return text if figure.calls == calls else f"{text} ({figure.calls})"


def tables(figures):
    """Returns both tables in Markdown, with what their cells hold."""
    return (
        "Errors and Fréchet distance, both in percent. In brackets is the number of calls, if it "
        "is less\nthan the column's:\n\n"
        f"{quality_table(figures)}\n"
        "The distance divided by that of Euler's method on the same levels:\n\n"
        f"{euler_table(figures)}"
    )


def with_tables(page, text):
    """Returns a page of Markdown with other tables between the two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + text + END + after


def quality_table(figures):
    """Returns the Markdown table of all figures, a block of rows for each group."""
    lines = [["sampler", *map(str, CALLS)], ["---"] * (1 + len(CALLS))]
    for group in GROUPS:
        lines.append([f"*{group}*", *[""] * len(CALLS)])
        for row in rows():
            if row.group == group:
                cells = [cell(measured(figures, row.label, n), n) for n in CALLS]
                lines.append([row.label, *cells])
    return markdown(lines)


def euler_table(figures, columns=(4, 8, 18)):
    """Returns the Markdown table of distances as multiples of Euler's on the same levels."""
    lines = [["sampler", "Euler's method", *map(str, columns)]]
    lines.append(["---"] * (2 + len(columns)))
    for row in rows():
        if row.euler in (None, row.label):
            continue
        cells = []
        for calls in columns:
            ours = measured(figures, row.label, calls)
            euler = measured(figures, row.euler, calls)
            if ours is None or euler is None:
                cells.append(NONE)
                continue
            ratio = f"{ours.distance / euler.distance:.2f}"
            cells.append(ratio if ours.calls == calls else f"{ratio} ({ours.calls})")
        lines.append([row.label, row.euler, *cells])
    return markdown(lines)


def markdown(lines):
    """Returns lines of cells as a table."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
