"""The plot and the picture of benchmarks/samplers.py."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from samplers_figures import CALLS
from samplers_rows import GROUPS, rows

# Okabe and Ito's colours, which colour-blind readers can tell apart too, each with its marker.
STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#8B4513", "X"),
    ("#6A3D9A", "*"),
)
EULER = {"color": "black", "linestyle": ":", "marker": ".", "linewidth": 1.8}
DOTS_PER_INCH = 100  # of the plot: inches are hundreds of pixels
LEAST_ERROR = 0.001  # drawn for no error at all, which a logarithmic scale has no place for

# Of the picture, in pixels.
GAP = 6
HEAD = 26
SCALE = 2


def draw_plot(figures, path):
    """Writes distance and error against network calls, a line of two panels for each group."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(GROUPS),
        2,
        figsize=(9, 2.4 * len(GROUPS)),
        sharex=True,
        sharey="col",
        layout="constrained",
        dpi=DOTS_PER_INCH,
    )
    for group, (left, right) in zip(GROUPS, axes, strict=True):
        draw_group(figures, group, left, right)
        left.set_title(group, fontsize=10, loc="left", fontweight="bold")
        left.set_ylabel("Fréchet distance", fontsize=8)
        right.set_ylabel("errors", fontsize=8)
    for axis in axes.flat:
        finish(axis)
    for axis in axes[-1]:
        axis.set_xlabel("network calls", fontsize=8)
    figure.savefig(path)


def draw_group(figures, group, left, right):
    """Draws the curves of one group into its two panels, with their names next to them."""
    labels = [row.label for row in rows() if row.group == group]
    if group == GROUPS[3]:
        labels.insert(0, "EulerDiscrete")
    styles = iter(STYLES)
    for label in labels:
        points = [point for point in figures.values() if point.sampler == label]
        if not points:
            continue
        points.sort(key=lambda point: point.calls)

        # Euler's method looks the same in every panel, for comparison.
        style = EULER
        if label not in ("EDMEuler", "EulerDiscrete"):
            color, marker = next(styles)
            style = {"color": color, "marker": marker, "linewidth": 1.2}
        calls = [point.calls for point in points]
        errors = [max(1 - point.recognised, LEAST_ERROR) for point in points]
        left.plot(calls, [point.distance for point in points], markersize=5, **style)
        right.plot(calls, errors, markersize=5, label=label, **style)
    right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.04), frameon=False)


def finish(axis):
    """Sets scales, ticks and lines of a panel."""
    axis.set(xscale="log", yscale="log", xticks=CALLS, xticklabels=CALLS)
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
    axis.tick_params(labelsize=8, labelbottom=True)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def draw_picture(cells, labels, columns, path):
    """Writes rows of samplers and columns of network calls, with their heads.

    Args:
        cells: images u8[H, W] by label and number of calls; missing ones stay empty.
        labels: the rows, from above.
        columns: the numbers of calls, from the left.
        path: the picture to write.
    """
    font = ImageFont.load_default(size=16)
    height, width = next(iter(cells.values())).shape
    cell_width = SCALE * width + GAP
    cell_height = SCALE * height + GAP
    left = round(max(font.getlength(label) for label in labels)) + 2 * GAP
    size = (left + cell_width * len(columns), 2 * HEAD + cell_height * len(labels))
    page = Image.new("L", size, 255)
    draw = ImageDraw.Draw(page)

    # Heads of columns, centred over them.
    middle = left + cell_width * len(columns) / 2
    draw.text((middle, HEAD / 2), "network calls", fill=0, font=font, anchor="mm")
    for i, number in enumerate(columns):
        place = (left + cell_width * (i + 0.5), 1.5 * HEAD)
        draw.text(place, str(number), fill=0, font=font, anchor="mm")

    # Rows: a head at the left, then what was made in these numbers of calls.
    for j, label in enumerate(labels):
        top = 2 * HEAD + cell_height * j
        place = (left - GAP, top + SCALE * height / 2)
        draw.text(place, label, fill=0, font=font, anchor="rm")
        for i, number in enumerate(columns):
            if (label, number) in cells:
                digits = np.kron(cells[label, number], np.ones((SCALE, SCALE), np.uint8))
                page.paste(Image.fromarray(digits), (left + cell_width * i, top))
    page.save(path)
