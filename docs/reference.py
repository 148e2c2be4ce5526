"""Writes the pages of the API reference: one for each public module, and for each scheduler.

Sphinx calls this before a build. What is public follows from the package: the names in `__all__`
of a module that has one, otherwise its own functions and classes without an underscore.
"""

import importlib
import inspect
from pathlib import Path
from types import ModuleType

import cmjax

# The pages of modules, in the order of the site.
GROUPS = {
    "Sampling": ("sampling", "schedulers", "parametrization", "guidance", "categorical", "random"),
    "Models": ("model", "models", "autoencoder", "checkpoints", "registry", "networks", "labels"),
    "Editing": ("editing", "constraints", "images", "image_files"),
    "Training": (
        "training",
        "training.losses",
        "training.trainer",
        "training.train_step",
        "training.data",
        "training.sources",
        "training.picture_folders",
        "training.pairs",
        "training.encoding",
        "training.encoder",
        "training.moments",
        "training.latents",
        "training.checkpointing",
        "training.discretization",
        "training.run",
        "training.setup",
        "training.config",
        "training.sections",
        "training.presets",
        "training.inspection",
        "training.reports",
        "training.compiling",
    ),
    "Many samples, and judging them": ("generation", "evaluation", "level_search", "testing"),
    "Inside": (
        "arrays",
        "tracing",
        "serialization",
        "conditioning",
        "sampling_inputs",
        "model_sampling",
        "meshes",
        "configs",
        "files",
        "processes",
        "progress",
        "interrupts",
        "spelling",
        "printing",
        "former_names",
        "system",
        "cli",
        "version",
    ),
}  # fmt: skip


# What constants and names of types are: Python keeps no docstrings of them.
CONSTANTS = {
    "ApplyFn": "The type of a network, `(params, x, t, **cond) -> model_output`.",
    "BUNDLED": "The folder of the bundled digits, which `load()` opens.",
    "Batch": "The type of a batch: arrays `[B, ...]` by name, the data under `data`.",
    "Constraint": "The type of a constraint, `x0 -> x0`.",
    "DIT_SIZES": "The sizes of the paper's transformers by name: options of `DiTConfig`.",
    "Denoiser": "The type of a function that estimates x0.",
    "FROM_THE_RUN": "The fields of a loss that a training run fills in, and where from.",
    "LOSSES": "The losses by their names, as the command line takes them.",
    "METRICS": "The metrics by their names, as the command line takes them.",
    "Metric": "The type of a metric, `(a, b) -> f32[B]`.",
    "Metrics": "The type of what a loss reports: f32[] by name.",
    "IMPROVED_MEAN_FLOWS": "The configurations of improved MeanFlow's released networks by name.",
    "MEAN_FLOWS": "The configurations of MeanFlow's released networks by name.",
    "SHORTCUTS": "The configurations of the released shortcut models by name.",
    "NCSNPP_PRESETS": "The configurations of the released NCSN++ networks by name.",
    "PIXEL_MEAN_FLOWS": "The configurations of Pixel MeanFlow's released networks by name.",
    "PRESETS": "The configurations of the released networks by name.",
    "REC601": "The weights of red, green and blue in luminance, of the standard Rec. 601.",
    "SCHEDULERS": "The schedulers by their names.",
    "Scale": "The type of a scale of guidance: a number, one per sample, or a function of sigma.",
    "STROKE_SIGMAS": "The two noise levels of editing with strokes, of the paper's appendix D.",
    "main": "The command `cmjax`, a `click` group.",
}


def public_names(module: ModuleType) -> list[str]:
    """Returns the public names of a module, in order."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    own = []
    for name, value in vars(module).items():
        documented = inspect.isclass(value) or inspect.isfunction(value)
        if documented and not name.startswith("_") and value.__module__ == module.__name__:
            own.append(name)
    return own


def pages() -> dict[str, str]:
    """Returns the pages as reStructuredText, by their names."""
    found = {}
    seen = {}

    # Each object is described once: under `cmjax.` if it is there, else where it comes up first.
    for name in cmjax.__all__:
        value = getattr(cmjax, name)
        if not inspect.ismodule(value):
            seen[_identity(value, name)] = f"cmjax.{name}"
    top = []
    for name in sorted(seen.values()):
        if name.endswith("Scheduler"):
            found[name] = _title(name.removeprefix("cmjax.")) + _entry(name)
        else:
            top.append(name)
    found["cmjax"] = _page("cmjax", top, ["cmjax.schedulers"])

    for modules in GROUPS.values():
        for short in modules:
            full = f"cmjax.{short}"
            found[full] = _module_page(full, seen)
    return found


def _module_page(full, seen):
    """The page of a module; what has been described before is only listed."""
    here = []
    elsewhere = []
    module = importlib.import_module(full)
    for name in public_names(module):
        value = getattr(module, name)
        if inspect.ismodule(value):
            continue
        first = seen.setdefault(_identity(value, f"{full}.{name}"), f"{full}.{name}")
        (here if first == f"{full}.{name}" else elsewhere).append(first)
    page = _page(full, here, elsewhere)
    if full == "cmjax.schedulers":
        hidden = "\n".join(f"   {name}" for name in elsewhere if name.endswith("Scheduler"))
        page += f"\n.. toctree::\n   :hidden:\n\n{hidden}\n"
    return page


def _identity(value, name):
    """What tells objects apart: functions and classes by themselves, constants by their name."""
    if inspect.isclass(value) or inspect.isfunction(value):
        return value
    return name


def _page(full, here, elsewhere):
    """The module's docstring, a table of its functions and classes, and their descriptions."""
    lines = [_title(full), f".. automodule:: {full}", ""]
    listed = [
        name for name in [*here, *elsewhere] if name.rpartition(".")[2] not in CONSTANTS
    ]
    if listed:
        lines += [".. autosummary::", "   :nosignatures:", ""]

        # Names of this module are short: autosummary looks them up in it.
        for name in listed:
            short = name.removeprefix(f"{full}.")
            lines.append(f"   {short}" if short != name else f"   ~{name}")
        lines.append("")
    lines += [_entry(name) for name in here]
    return "\n".join(lines)


def _entry(full):
    """The directive that describes one object."""
    parent, _, name = full.rpartition(".")
    value = getattr(importlib.import_module(parent), name)
    if inspect.isclass(value):
        return f".. autoclass:: {full}\n   :members:\n   :show-inheritance:\n"
    if inspect.isfunction(value):
        return f".. autofunction:: {full}\n"
    return f".. py:data:: {full}\n\n   {CONSTANTS[name]}\n"


def _title(full):
    return f"{full}\n{'=' * len(full)}\n"


def write(folder: Path) -> None:
    """Writes the pages that have changed, and removes those of names that are gone."""
    made = {f"{name}.rst": page for name, page in pages().items()}
    for path in folder.glob("*.rst"):
        if path.name not in made:
            path.unlink()
    for name, page in made.items():
        path = folder / name
        if not path.exists() or path.read_text() != page:
            path.write_text(page)
