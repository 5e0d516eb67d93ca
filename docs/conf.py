"""Sphinx configuration."""

import warnings
from pathlib import Path

import matplotlib

import panda_sklearn

matplotlib.use("Agg")  # examples draw off screen
warnings.filterwarnings("ignore", message="Matplotlib is currently using agg")

project = "panda_sklearn"
author = "the panda_sklearn developers"
copyright = f"2026, {author}"
version = release = panda_sklearn.__version__

extensions = [
    "myst_parser",  # CHANGES.md
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",  # hidden set-up of blocks that the tests run
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
    "sphinx_design",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "auto_examples/*.ipynb"]
suppress_warnings = ["config.cache"]  # the gallery's sorting functions do not pickle

html_theme = "furo"
html_title = "panda_sklearn"
html_static_path = ["_static"]
html_css_files = ["site.css"]

# What is copied: code without its prompts, and without what it prints.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .go"

autosummary_generate = True
numpydoc_show_class_members = False
numpydoc_show_inherited_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    "download_all_examples": False,
    "default_thumb_file": str(Path(__file__).parent / "images" / "thumbnail.png"),
    "min_reported_time": 1,
    "show_signature": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
}
