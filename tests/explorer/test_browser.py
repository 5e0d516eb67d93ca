"""The page in a real browser, headless: needs gradio, playwright and a Chromium.

With ``EXPLORER_PICTURES`` set to a folder, the run leaves the documentation's pictures
there.
"""

import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra explorer")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright, of the extra browser"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium on the PATH"),
    pytest.mark.slow,
]

# Without what browsers do by themselves on the network.
ALONE = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

# Notes each host that the process looks up or connects to.
WATCHED = """
import runpy, sys
log = open(sys.argv[1], "a", buffering=1)

def note(event, args):
    if event == "socket.getaddrinfo":
        print(args[0], file=log)
    elif event == "socket.connect" and isinstance(args[1], tuple):
        print(args[1][0], file=log)

sys.addaudithook(note)
sys.argv = ["explorer"]
runpy.run_module("panda_sklearn.explorer", run_name="__main__", alter_sys=True)
"""
OWN = {"127.0.0.1", "localhost", "::1", "0.0.0.0", "None"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The page's address; that it leaves no file and looks nobody up is checked."""
    folder, log = tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("log")
    asked = log / "hosts"
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": path}
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED, str(asked)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "http://" in line:
                break
        else:
            pytest.fail("".join(lines))
        yield line.split()[-1]
    finally:
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=30)
    assert "Traceback" not in rest, rest
    left = [path.name for path in folder.iterdir()]
    assert [name for name in left if not name.startswith("torchinductor")] == []
    assert set(asked.read_text().split()) <= OWN


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ALONE)
        yield browser
        browser.close()


class Visitor:
    """A browser's page, with what a visitor does on it."""

    def __init__(self, browser, server, width=1300, options=""):
        self.page = browser.new_page(viewport={"width": width, "height": 1000})
        self.errors, self.hosts = [], set()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda asked: self.hosts.add(asked.url.split("/")[2]))
        self.page.goto(server + options)
        self.page.wait_for_selector("#face img", timeout=60_000)
        self.page.wait_for_selector("#images img")

    def source(self):
        return self.page.locator("#face img").get_attribute("src")

    def changed(self, act):
        """Do something, and wait until there is another image."""
        before = self.source()
        act()
        self.page.wait_for_function(
            "src => document.querySelector('#face img')?.getAttribute('src') !== src",
            arg=before,
        )
        return self.image()

    def shows(self, source):
        """Wait until the image is the one that has been at this address."""
        self.page.wait_for_function(
            "src => document.querySelector('#face img')?.getAttribute('src') === src",
            arg=source,
        )

    def image(self):
        answer = self.page.request.get(self.source())
        return np.asarray(Image.open(io.BytesIO(answer.body()))).astype(int)

    def click_at(self, row, column):
        box = self.page.locator("#face img").bounding_box()
        where = {"x": box["width"] * column, "y": box["height"] * row}
        self.page.locator("#face img").click(position=where)

    def slide(self, strength):
        self.page.locator("#strength input[type=range]").fill(str(strength))

    def tab(self, name):
        # On narrow pages some are in a menu.
        tab = self.page.get_by_role("tab", name=name)
        if not tab.is_visible():
            self.page.get_by_role("button", name="...").click()
        tab.click()

    def kept(self):
        return self.page.locator("#stack label").all_inner_texts()

    def wait_for_kept(self, n):
        self.page.wait_for_function(
            "n => document.querySelectorAll('#stack input').length === n", arg=n
        )

    def picture(self, name, *, whole=True):
        folder = os.environ.get("EXPLORER_PICTURES")
        if folder:
            self.page.wait_for_timeout(1500)  # of the looks alone
            self.page.screenshot(path=Path(folder) / name, full_page=whole)


def test_from_a_click_to_a_file_and_back(server, browser, tmp_path):
    visitor = Visitor(browser, server)
    first = visitor.image()
    visitor.changed(lambda: visitor.click_at(0.77, 0.5))
    visitor.tab("Part and change")
    visitor.page.locator("#tiles button").first.wait_for()
    assert "variation 0" in visitor.page.locator("#index input").input_value()

    moved = visitor.changed(lambda: visitor.slide(3))
    source = visitor.source()
    change = np.abs(moved - first).mean(axis=2)
    height, width = change.shape
    mouth = change[int(0.68 * height) : int(0.85 * height), width // 3 : -width // 3]
    assert mouth.mean() > 10 * change[: height // 3].mean()

    # Kept, and slid on at once: what is on its way must not take it back.
    visitor.page.locator("#keep").click()
    for strength in (1, 2, -1, -2):
        visitor.slide(strength)
    visitor.wait_for_kept(1)
    assert visitor.kept() == ["variation 0 at part 4"]
    visitor.slide(0)
    visitor.shows(source)  # pictures alike have one address
    assert np.array_equal(visitor.image(), moved)

    visitor.tab("Files and code")
    with visitor.page.expect_download() as downloading:
        visitor.page.locator("#save").click()
    path = tmp_path / downloading.value.suggested_filename
    downloading.value.save_as(path)
    visitor.tab("Part and change")
    visitor.picture("explorer.png")

    visitor.page.reload()
    visitor.page.wait_for_selector("#images img")
    assert np.array_equal(visitor.image(), first) and visitor.kept() == []
    visitor.tab("Files and code")
    uploading = visitor.page.locator("input[type=file][accept*=safetensors]").first
    again = visitor.changed(lambda: uploading.set_input_files(path))
    assert np.array_equal(again, moved)
    assert visitor.kept() == ["variation 0 at part 4"]
    assert not visitor.errors and visitor.hosts == {server.split("/")[2]}


def test_what_is_wrong_is_said(server, browser, tmp_path):
    visitor = Visitor(browser, server)
    visitor.changed(lambda: visitor.slide(2))
    visitor.page.locator("#keep").click()
    visitor.wait_for_kept(1)
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"this is none")
    visitor.tab("Files and code")
    visitor.page.locator("input[type=file][accept*=safetensors]").first.set_input_files(
        wrong
    )
    message = visitor.page.get_by_text("wrong.safetensors")
    message.first.wait_for()
    text = visitor.page.locator("body").inner_text()
    assert "Traceback" not in text and str(tmp_path) not in text
    assert len(visitor.kept()) == 1 and not visitor.errors


def test_visitors_do_not_see_each_others_edits(server, browser):
    one, other = (Visitor(browser, server) for _ in range(2))
    before = other.image()
    one.changed(lambda: one.slide(4))
    one.page.locator("#keep").click()
    one.wait_for_kept(1)
    other.changed(lambda: other.slide(1))
    other.changed(lambda: other.slide(0))
    assert np.array_equal(other.image(), before) and other.kept() == []
    assert not np.array_equal(one.image(), before)


def test_on_a_phone_in_the_dark(server, browser):
    """The image comes first, and nothing is wider than the page."""
    visitor = Visitor(browser, server, 390, "/?__theme=dark")
    face = visitor.page.locator("#face").bounding_box()
    assert face["y"] + face["height"] < 600
    wide = visitor.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390
    visitor.changed(lambda: visitor.click_at(0.77, 0.5))
    visitor.picture("explorer_phone.png", whole=False)
    assert not visitor.errors


def test_all_controls_have_names(server, browser):
    visitor = Visitor(browser, server)
    for tab in ("Images", "Part and change", "Files and code"):
        visitor.tab(tab)
        unnamed = visitor.page.evaluate(
            """() => [...document.querySelectorAll("button, input, textarea")]
            .filter((e) => e.offsetParent !== null)
            .filter((e) => !(e.ariaLabel || e.title || e.innerText?.trim()
                || e.labels?.length || e.getAttribute("aria-labelledby")
                || e.closest("label")))
            .map((e) => e.outerHTML.slice(0, 120))"""
        )
        assert unnamed == []
