"""What the package says of itself is the same everywhere."""

import re
import tomllib
from pathlib import Path

import cmjax
from tests.support.pages import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.*)$", citation, re.M) == [cmjax.__version__]
    page = (ROOT / "docs" / "citation.md").read_text()
    assert f"version = {{{cmjax.__version__}}}" in page

    # The title and the authors, too.
    title = re.search(r'^title: "(.*)"$', citation, re.M)[1]
    assert f"title = {{{title}}}" in page
    for author in PROJECT["authors"]:
        assert f'name: "{author["name"]}"' in citation
        assert author["name"] in page


def test_type_checkers_may_read_the_package():
    assert Path(cmjax.__file__).with_name("py.typed").exists()


def test_the_extras_are_the_ones_that_the_pages_name():
    extras = set(PROJECT["optional-dependencies"])
    assert extras == {"train", "test", "parity", "docs", "dev", "cuda", "tpu"}
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]:
        for named in re.findall(r'"\.\[([\w,]+)\]"', page.read_text()):
            assert set(named.split(",")) <= extras, page.name
