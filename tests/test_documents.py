"""What the README and the documentation pages show, run as it stands there."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_python_of_the_readme():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names = {}
    exec(code, names)
    assert names["coefficients"].shape == (1000, 48 * 12)
    assert names["activations"].shape == (1000, 128, 16, 16)
    assert names["where"].shape == (1000, 16, 16)
    assert names["images"].shape == (8, 3, 64, 64)
    generator, latents = names["generator"], names["latents"]
    assert (names["images"] - generator(latents[:8])).abs().max() > 0.1


PAGES = [*(ROOT / "docs").glob("*.rst"), *(ROOT / "docs/generators").glob("*.rst")]


@pytest.mark.parametrize("page", sorted(PAGES), ids=str)
def test_the_sessions_of_the_documentation(page):
    assert doctest.testfile(str(page), module_relative=False).failed == 0


def test_continuous_integration_runs_the_readme_s_commands():
    commands = re.findall(r"```sh\n(.*?)\n```", (ROOT / "README.md").read_text())
    script = (ROOT / ".ci/run").read_text()
    endings = [command.rpartition("&& python ")[2] for command in commands]
    assert len(endings) == 2
    for ending in endings:
        assert f"readme_command '{ending}'" in script
