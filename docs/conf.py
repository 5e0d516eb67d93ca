"""Sphinx configuration."""

import warnings

import matplotlib

import panda_sklearn

matplotlib.use("Agg")  # examples draw off screen
warnings.filterwarnings("ignore", message="Matplotlib is currently using agg")

project = "panda_sklearn"
author = "the panda_sklearn developers"
copyright = f"2026, {author}"
version = release = panda_sklearn.__version__

extensions = [
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "auto_examples/*.ipynb"]
suppress_warnings = ["config.cache"]  # the gallery's sorting functions do not pickle

html_theme = "furo"
html_title = "panda_sklearn"

autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_show_inherited_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    "download_all_examples": False,
    "min_reported_time": 1,
    "show_signature": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
}
