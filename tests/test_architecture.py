"""Imports only go down: the floors of the package."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import panda_sklearn

ROOT = Path(panda_sklearn.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# The floor of each module, as the table of the documentation has it.
TABLE = Path(__file__).parents[1] / "docs" / "development.rst"
FLOORS = {
    f"panda_sklearn.{name}": int(floor)
    for floor, name in re.findall(r"^(\d) +``([\w.]+)``", TABLE.read_text(), re.M)
}

# What else each floor may import.
OUTSIDE = {
    0: {"torch"},
    1: {"torch"},
    2: {"torch", "numpy", "scipy", "sklearn", "safetensors", "joblib", "filelock"},
    3: {"torch", "numpy", "scipy", "sklearn", "tqdm"},
    4: {"torch", "numpy", "scipy", "sklearn", "matplotlib"},
    5: {"torch", "numpy", "sklearn", "PIL"},
}


def name_of(path):
    parts = ("panda_sklearn", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module):
    """That of the module's row, or of its package's; of the highest row within it."""
    within = [FLOORS[row] for row in FLOORS if row.startswith(f"{module}.")]
    if within and module not in FLOORS:
        return max(within)
    row = module
    while row not in FLOORS:
        row = row.rpartition(".")[0]
        assert row, f"{module} has no row in {TABLE.name}"
    return FLOORS[row]


def imports_of(path):
    """Every imported module; of ``from package import module`` both."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_only_go_down(path):
    floor = floor_of(name_of(path))
    for imported in imports_of(path):
        top = imported.partition(".")[0]
        if top == "panda_sklearn":
            assert floor_of(imported) <= floor, f"{imported} is above floor {floor}"
        elif top not in sys.stdlib_module_names:
            assert top in OUTSIDE[floor], f"floor {floor} may not import {top}"


def is_own(attribute):
    """Whether an attribute is one of ``self`` or ``cls``."""
    owner = attribute.value
    return isinstance(owner, ast.Name) and owner.id in ("self", "cls")


def names_of_classes(tree):
    """What the classes of a module define, in their bodies and of ``self``."""
    for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for node in kind.body:
            if isinstance(node, ast.FunctionDef):
                yield node.name
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                targets = getattr(node, "targets", None) or [node.target]
                yield from map(ast.unparse, targets)
        for node in ast.walk(kind):
            stored = isinstance(getattr(node, "ctx", None), ast.Store)
            if isinstance(node, ast.Attribute) and stored and is_own(node):
                yield node.attr


# Private names of other packages, and the one with which a cache lends itself.
OTHERS_PRIVATE = {
    "torch": {
        "_C",
        "_autograd",
        "_forward_hooks",
        "_forward_hooks_always_called",
        "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs",
        "_global_forward_hooks_always_called",
        "_version",
    },
    "sklearn": {
        "_init_callback_context",
        "_metadata_request",
        "_parameter_constraints",
        "_validate_params",
    },
    "sys": {"_getframe"},
    "panda_sklearn.memory": {"_memory"},
}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_private_names_are_used_where_they_are_defined(path):
    tree = ast.parse(path.read_text())
    allowed = set(names_of_classes(tree)).union(*OTHERS_PRIVATE.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not is_own(node):
            private = node.attr.startswith("_") and not node.attr.endswith("__")
            assert not private or node.attr in allowed, (
                f"line {node.lineno}: {ast.unparse(node)} is private to another module"
            )


def test_imports_have_no_circles():
    above = {
        name_of(path): {
            imported
            for imported in imports_of(path)
            if imported.startswith("panda_sklearn.")
        }
        for path in MODULES
    }

    def visit(module, path):
        assert module not in path, " -> ".join([*path, module])
        for imported in above.get(module, ()):
            visit(imported, [*path, module])

    for module in above:
        visit(module, [])


def test_estimators_do_not_know_each_other():
    for one, other in (
        ("decomposition", "feature_extractor"),
        ("feature_extractor", "decomposition"),
    ):
        assert f"panda_sklearn.{other}" not in set(imports_of(ROOT / f"{one}.py"))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_say_their_duty(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_importing_the_package_is_light():
    """It brings in nothing but itself and what it is built on."""

    def brought_in_by(statement):
        code = f"{statement}; import sys; print(*sys.modules)"
        output = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        return {module.partition(".")[0] for module in output.split()}

    ours = brought_in_by(
        "import panda_sklearn, panda_sklearn.datasets, panda_sklearn.generators, "
        "panda_sklearn.inspection, panda_sklearn.memory, panda_sklearn.metrics, "
        "panda_sklearn.model_selection"
    )
    basis = brought_in_by(
        "import sklearn.pipeline, torch, safetensors.torch, tqdm, filelock, "
        "scipy.optimize"
    )
    assert {m for m in ours - basis if not m.startswith("_")} == {"panda_sklearn"}


@pytest.mark.parametrize("module", [*map(name_of, MODULES)])
def test_no_package_hides_a_module(module):
    """A package binds the name of a submodule to that module, if to anything."""
    package, _, name = module.rpartition(".")
    if name not in ("", "panda_sklearn", "__main__"):
        found = importlib.import_module(module)
        assert getattr(importlib.import_module(package), name) is found
