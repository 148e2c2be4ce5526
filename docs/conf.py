"""Settings of the site: `sphinx-build -W -n docs docs/_build/html`."""

import os
import re
import sys
from importlib import metadata
from pathlib import Path

# The pages document this checkout, installed or not; notebooks run in processes of their own.
DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))
sys.path.insert(0, str(DOCS.parent))
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(DOCS.parent), os.environ.get("PYTHONPATH", "")]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# A program of a notebook runs a few times only, so it is compiled quickly rather than well, and
# once for all notebooks: this halves their time. jaxlib after 0.10 does not know the emitters.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false"
    * metadata.version("jaxlib").startswith("0.10."),
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(DOCS / "_build" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import reference  # noqa: E402
from sphinx.pycode import ModuleAnalyzer  # noqa: E402

from cmjax.version import __version__  # noqa: E402

COLON = "\x1f"  # stands for a colon while napoleon reads a docstring

project = "cmjax"
author = "The cmjax authors"
release = __version__
version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

# Markdown. Headings have the anchors that repository hosts give them.
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["config.cache", "myst-nb.lexer"]

# Blocks without a language are commands, formulas and what programs print.
highlight_language = "none"

# Notebooks are executed when their code has changed; an exception ends the build.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 1200  # of one cell, on a busy machine
nb_merge_streams = True

# Docstrings. A single backtick is code, as in Markdown.
default_role = "literal"
autosummary_generate = False  # reference.py writes the pages
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
toc_object_entries_show_parents = "hide"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# Types of other packages have no page here, and the build asks nothing of the network.
nitpick_ignore_regex = [
    ("py:.*", r"(jax|jaxlib|numpy|np|flax|nnx|linen|optax|orbax|PIL|click|tqdm)\..*"),
    ("py:.*", r"(abc|collections|contextlib|io|os|pathlib)\..*"),
    # Type variables, and base classes that are not public.
    ("py:.*", r"(cmjax\..*\.)?(Arguments|Class|Config|Network|Result|Section|State)"),
    (
        "py:.*",
        r"cmjax\..*\.(TwoLevelLoss|Thresholded|KarrasRange|Latents|StoredTensor|_SimplifiedLoss)",
    ),
    ("py:.*", r"cmjax\.schedulers\..*\.(Bound|Churn|Network)Options"),
    ("py:.*", r"cmjax\.schedulers\..*\.(Categorical|Distilled)Scheduler"),
    ("py:.*", r"cmjax\.schedulers\..*\.Configured"),
    ("py:.*", r"cmjax\.models\.context_.*\.Context(Config|Transformer)"),
    ("py:.*", r"cmjax\.generation\.folder_settings\.FolderSettings"),
    ("py:.*", r"dict\[str"),
]

html_theme = "sphinx_book_theme"
html_title = "cmjax"
html_favicon = "images/favicon.png"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": True,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # the search button is in the sidebar
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"


def _protect(app, what, name, obj, options, lines):
    """Keeps napoleon from reading "EDM's parametrization: ..." as a type and its description."""
    if what in ("property", "attribute"):
        lines[:] = [line.replace(":", COLON) for line in lines]


def _escape(app, what, name, obj, options, lines):
    """Docstrings write norms as |x|, which reStructuredText takes for a substitution."""
    # Every second part is code.
    parts = re.split(r"(`+[^`]*`+)", "\n".join(lines).replace(COLON, ":"))
    parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def setup(app):
    """Writes the pages of the reference before Sphinx looks for pages."""
    reference.write(DOCS / "api")

    # A signature with all arguments, instead of one for each overload.
    for module in ("cmjax.sampling", "cmjax.model"):
        analyzer = ModuleAnalyzer.for_module(module)
        analyzer.analyze()
        analyzer.overloads.clear()
    app.connect("autodoc-process-docstring", _protect, priority=400)  # napoleon has 500
    app.connect("autodoc-process-docstring", _escape)
