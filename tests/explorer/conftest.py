"""The shipped editor, and what visitors see of it at first."""

import pytest

from panda_sklearn.datasets import load_face_edits
from panda_sklearn.explorer import _actions as actions
from panda_sklearn.explorer._explored import Explored

RECIPE = (
    "from panda_sklearn.datasets import load_face_edits\n"
    "editor, _ = load_face_edits(truncation=TRUNCATION)"
)


@pytest.fixture(scope="package")
def explored():
    editor, _ = load_face_edits()
    return Explored(editor, None, (-1.0, 1.0), RECIPE)


@pytest.fixture(scope="package")
def session(explored):
    return actions.start(explored)
