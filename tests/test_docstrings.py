"""Docstrings: complete, true to the signatures, and their examples run."""

import ast
import doctest
import importlib
import inspect

import pytest
from numpydoc.validate import validate

PUBLIC_MODULES = [
    "panda_sklearn",
    "panda_sklearn.datasets",
    "panda_sklearn.editing",
    "panda_sklearn.generators",
    "panda_sklearn.inspection",
    "panda_sklearn.memory",
    "panda_sklearn.metrics",
    "panda_sklearn.model_selection",
]

# numpydoc's checks that we do not follow.
NOT_OURS = {
    "GL01",  # text begins on the line of the quotes, not after it
    "GL08",  # no docstring: __init__, whose parameters the class describes
    "SA01",  # no See Also
    "SA04",  # See Also without a description
    "EX01",  # no Examples: classes and functions have some, methods need none
    "ES01",  # no extended summary
    "RT02",  # named return values are welcome
    "PR02",  # "\*" in names
    "PR09",  # checked here against types such as "X : Ignored"
}


def public_objects():
    for module in map(importlib.import_module, PUBLIC_MODULES):
        for name in module.__all__:
            thing = getattr(module, name)
            if not callable(thing):
                continue
            yield f"{module.__name__}.{name}"
            if inspect.isclass(thing):
                for method in vars(thing):
                    if not method.startswith("_") and callable(getattr(thing, method)):
                        yield f"{module.__name__}.{name}.{method}"


NAMES = list(public_objects())


@pytest.mark.parametrize("name", NAMES)
def test_numpydoc(name):
    problems = [
        (code, text) for code, text in validate(name)["errors"] if code not in NOT_OURS
    ]
    assert not problems


def resolve(name):
    """The object of a dotted name."""
    thing = importlib.import_module("panda_sklearn")
    for part in name.split(".")[1:]:
        try:
            thing = getattr(thing, part)
        except AttributeError:
            thing = importlib.import_module(f"{thing.__name__}.{part}")
    return thing


def documented_defaults(thing):
    """The ``name : type, default=value`` lines of a docstring."""
    for line in (inspect.getdoc(thing) or "").splitlines():
        head, separator, default = line.partition("default=")
        if separator and " : " in head:
            yield head.partition(" : ")[0], default


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_the_signature(name):
    thing = resolve(name)
    documented = dict(documented_defaults(thing))
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.default is inspect.Parameter.empty or parameter.name == "y":
            continue
        assert parameter.name in documented
        assert ast.literal_eval(documented[parameter.name]) == parameter.default


@pytest.mark.parametrize(
    "name",
    [
        "panda_sklearn.decomposition",
        "panda_sklearn.feature_extractor",
        "panda_sklearn.editing._edit",
        "panda_sklearn.editing._editor",
        "panda_sklearn.editing._generator",
        "panda_sklearn.editing._parts",
        "panda_sklearn.generators._diffusion",
        "panda_sklearn.generators._families",
        "panda_sklearn.generators._latents",
        "panda_sklearn.generators._layers",
        "panda_sklearn.datasets._faces",
        "panda_sklearn.datasets._synthetic",
        "panda_sklearn.inspection._ranks",
        "panda_sklearn.memory",
        "panda_sklearn.metrics._factors",
        "panda_sklearn.metrics._images",
        "panda_sklearn.model_selection",
    ],
)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0
