"""The page as an app, without a browser."""

import json
import subprocess
import sys

import pytest

from panda_sklearn.explorer import explore
from tests.networks import TinyGenerator

# In a process of its own: gradio leaves event loops open, which are errors here.
FACTS = """
import contextlib
import io
import json
import gradio
from panda_sklearn.datasets import load_face_edits
from panda_sklearn.explorer import explore

app = explore(load_face_edits()[0])
components = [
    block
    for block in app.blocks.values()
    if isinstance(block, gradio.components.Component)
    and not isinstance(block, gradio.Markdown | gradio.State)
]
facts = {
    "is_app": isinstance(app, gradio.Blocks),
    "runs": app.is_running,
    "reports": app.analytics_enabled,
    "deletes": app.delete_cache,
    "offered": [fn.api_visibility for fn in app.fns.values()],
    "unnamed": [
        type(block).__name__
        for block in components
        if not (getattr(block, "label", None) or getattr(block, "value", None))
    ],
    "n_components": len(components),
}
with contextlib.redirect_stdout(io.StringIO()) as said:
    app.launch(prevent_thread_lock=True)
facts |= {"said": said.getvalue(), "address": app.local_url, "shared": app.share}
app.close(verbose=False)
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts():
    pytest.importorskip("gradio", reason="needs the extra explorer")
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", FACTS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_it_is_an_app_that_is_launched_later(facts):
    assert facts["is_app"] and not facts["runs"]


def test_it_says_its_address_and_offers_no_public_link(facts):
    assert facts["said"].split()[-1] == facts["address"].rstrip("/")
    assert "public" not in facts["said"] and facts["shared"] is False


def test_nothing_is_reported_and_nothing_offered_to_programs(facts):
    assert facts["reports"] is False
    assert set(facts["offered"]) == {"private"}


def test_files_are_deleted_soon(facts):
    assert facts["deletes"] == [60, 300]


def test_every_component_has_a_label(facts):
    assert facts["n_components"] > 20 and facts["unnamed"] == []


class TestWhatCannotBe:
    @pytest.mark.parametrize("editor", [None, "an editor", TinyGenerator()])
    def test_editors(self, editor):
        with pytest.raises(TypeError, match="editor"):
            explore(editor)

    def test_options(self, explored):
        with pytest.raises(TypeError, match="draw"):
            explore(explored.editor, draw="latents")
        for pair in ((1, -1), (0,), "black", None, (0, float("nan"))):
            with pytest.raises((TypeError, ValueError), match="value_range"):
                explore(explored.editor, value_range=pair)

    def test_without_gradio(self, explored, monkeypatch):
        monkeypatch.setitem(sys.modules, "gradio", None)
        with pytest.raises(ImportError, match="pip install gradio"):
            explore(explored.editor)
