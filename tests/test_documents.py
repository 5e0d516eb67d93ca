"""What the README and the documentation pages show, run as it stands there."""

import doctest
import re
from pathlib import Path

import pytest

from tests.pages import literal_blocks, python_blocks

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_python_of_the_readme():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names = {}
    exec(code, names)
    assert names["coefficients"].shape == (1000, 48 * 12)
    assert names["images"].shape == names["others"].shape == (8, 3, 64, 64)
    generator, latents = names["generator"], names["latents"]
    assert (names["images"] - generator(latents[:8])).abs().max() > 0.1


PAGES = [*(ROOT / "docs").glob("*.rst"), *(ROOT / "docs/generators").glob("*.rst")]


@pytest.mark.parametrize("page", sorted(PAGES), ids=str)
def test_the_sessions_of_the_documentation(page):
    assert doctest.testfile(str(page), module_relative=False).failed == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:FigureCanvasAgg")
@pytest.mark.parametrize(
    "page", [page for page in sorted(PAGES) if python_blocks(page)], ids=str
)
def test_the_code_of_the_documentation(page, tmp_path, monkeypatch):
    """One block after the other, in one namespace, as a reader copies them."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for block in python_blocks(page):
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        if block.run:
            exec(code, names)


RUN_BY_TESTS_OF_THEIR_OWN = {
    *(ROOT / "docs/generators").glob("*.rst"),
    ROOT / "docs/large_data.rst",
}


@pytest.mark.parametrize("page", sorted({*PAGES} - RUN_BY_TESTS_OF_THEIR_OWN), ids=str)
def test_code_is_marked_as_code(page):
    """So that it is run here, and has a button that copies it."""
    assert literal_blocks(page) == []


def test_continuous_integration_runs_the_readme_s_commands():
    commands = re.findall(r"```sh\n(.*?)\n```", (ROOT / "README.md").read_text())
    script = (ROOT / ".ci/run").read_text()
    endings = [command.rpartition("&& python ")[2] for command in commands]
    assert len(endings) == 2
    for ending in endings:
        assert f"readme_command '{ending}'" in script
