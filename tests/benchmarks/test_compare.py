"""The rule and the table of benchmarks/compare.py, and the command on one small row."""

import importlib.util
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "compare.py"
spec = importlib.util.spec_from_file_location("panda_benchmarks_compare", FILE)
compare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compare)


def figure(ratio, spread=0.0, repeats=9):
    return {"ratio": ratio, "spread": spread, "repeats": repeats}


class Fake:
    """A version whose ratios are known, one after the other."""

    def __init__(self, *ratios):
        self.ratios = iter(ratios)

    def ratio(self, name):
        found = next(self.ratios)
        if isinstance(found, str):
            raise RuntimeError(found)
        return found


def test_figure():
    found = compare.figure([3.0, 1.0, 2.0, 5.0, 4.0])
    assert found == {"ratio": 3.0, "spread": 2.0, "repeats": 5}
    assert compare.figure([2.0]) == {"ratio": 2.0, "spread": 0.0, "repeats": 1}


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (figure(3.0), figure(3.9), "slower"),
        (figure(3.0), figure(3.25), ""),  # by less than 10 %
        (figure(3.0), figure(2.0), "faster"),
        (figure(3.0, 0.6), figure(3.9, 0.6), "slower"),  # 0.9 over 3 x 0.26
        (figure(3.0, 0.8), figure(3.9, 0.8), ""),  # 0.9 under 3 x 0.35
        (figure(3.0, 0.8, 25), figure(3.9, 0.8, 25), "slower"),  # more repeats
        (figure(0.004), figure(0.005), "slower"),  # whatever the size of the ratio
    ],
)
def test_verdict(before, now, said):
    assert compare.verdict(before, now) == said


def test_versions_take_turns():
    asked = []

    class Noting(Fake):
        def ratio(self, name):
            asked.append(self)
            return super().ratio(name)

    one, two = Noting(1.0, 2.0, 3.0), Noting(4.0, 5.0, 6.0)
    figures = compare.measured("row", [one, two], seconds=0, repeats=3)
    assert [each["ratio"] for each in figures] == [2.0, 5.0]
    assert asked == [one, two, two, one, one, two]


def test_a_row_that_fails_in_one_version():
    figures = compare.measured("row", [Fake("KeyError: x"), Fake(2.0)], 0, 3)
    assert figures[0] == "KeyError: x"
    text, slower = compare.line("row", *figures)
    assert "KeyError: x" in text and not slower


OPTIONS = Namespace(against=None, seconds=0, repeats=1)


@pytest.mark.parametrize(
    ("ratios", "slower"), [((2.0, 2.0), ["row"]), ((2.0, 1.0), []), ((1.0,), [])]
)
def test_what_appears_slower_is_measured_again(ratios, slower, capsys):
    stored = {"row": figure(1.0)}
    found, names = compare.compare(["row"], [Fake(*ratios)], stored, OPTIONS)
    assert names == slower
    assert found["row"]["ratio"] == ratios[-1]
    assert ("slower" in capsys.readouterr().out) == bool(slower)


def test_a_row_that_fails_now(capsys):
    fake = Fake("KeyError: x", "KeyError: x")
    found, names = compare.compare(["row"], [fake], {"row": figure(1.0)}, OPTIONS)
    assert names == ["row"] and not found
    assert "cannot be measured: KeyError: x" in capsys.readouterr().out


def test_without_stored_figures(capsys):
    _, names = compare.compare(["row"], [Fake(2.0)], {}, OPTIONS)
    assert names == []
    assert "new" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command(tmp_path):
    """A row is stored with its circumstances, and compared with what is stored."""
    file = tmp_path / "baseline.json"
    command = [sys.executable, str(FILE), "--file", str(file), "--rows", "64 by 1"]
    command += ["--seconds", "0", "--repeats", "1", "--threads", "1"]

    def run(*options):
        return subprocess.run([*command, *options], capture_output=True, text=True)

    stored = run("--update")
    assert stored.returncode == 0, stored.stderr
    ((name, row),) = json.loads(file.read_text()).items()
    assert name.endswith("64 by 1 / bare loop")
    assert set(row) >= {"ratio", "spread", "repeats", "date", "version", "commit"}
    file.write_text(json.dumps({name: row | {"ratio": row["ratio"] / 1000}}))
    slower = run()
    assert slower.returncode == 1, slower.stderr
    assert "1 of 1 rows slower" in slower.stdout
