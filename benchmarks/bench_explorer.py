"""The explorer: the time of a step of its slider, and four visitors at once.

In a headless Chromium, on the shipped generator:

step      from the slider's event to the new image, decoded, in milliseconds: median and
          95th percentile. Beside it a bare page, whose slider fetches the bytes of such
          an image from a server that does nothing else
visitors  four visitors for two minutes, each with their own images, drawing, clicking,
          sliding, keeping and undoing: errors, images mixed up between visitors, the
          server's memory meanwhile, and files left behind

    python -m pip install -e ".[browser]" && python benchmarks/bench_explorer.py
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.async_api import async_playwright

ALONE = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
BARE = """<input type=range min=-5 max=5 step=0.1 value=0><img id=face src="/0">
<script>document.querySelector("input").oninput = (event) => {
  document.getElementById("face").src = "/" + event.target.value; };</script>"""

# Moves a slider, and returns the time until another image is there, decoded.
STEP = """async ([slider, image, value]) => {
  const input = document.querySelector(slider), old = document.querySelector(image).src;
  const start = performance.now();
  input.value = value;
  input.dispatchEvent(new Event("input", { bubbles: true }));
  while (document.querySelector(image).src === old)
    await new Promise((next) => setTimeout(next, 1));
  await document.querySelector(image).decode();
  return performance.now() - start;
}"""
EXPLORER = ("#strength input[type=range]", "#face img")


@contextlib.contextmanager
def explorer():
    """The address of the page, its process, and the folder for its files."""
    folder = tempfile.mkdtemp()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "panda_sklearn.explorer", "--port", str(port)],
        env=os.environ | {"TMPDIR": folder},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while "http://" not in process.stdout.readline():
            if process.poll() is not None:
                raise RuntimeError("The page did not start.")
        yield f"http://127.0.0.1:{port}", process, Path(folder)
    finally:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
        left = [p for p in Path(folder).iterdir() if "torchinductor" not in p.name]
        print(f"files left: {len(left)}; tracebacks: {said.count('Traceback')}")
        shutil.rmtree(folder)


@contextlib.contextmanager
def bare_page(image):
    """The address of a page whose slider fetches the given bytes."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            page = self.path == "/page"
            body = BARE.encode() if page else image
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if page else "image/jpeg")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/page"
        server.shutdown()


async def opened(browser, address):
    """A visitor's page, with the images on it."""
    page = await browser.new_page()
    await page.goto(address)
    await page.wait_for_selector("#face img", timeout=60_000)
    await page.wait_for_selector("#images img", timeout=60_000)
    return page


async def image_of(page):
    """The bytes of the image on a page."""
    source = await page.locator("#face img").get_attribute("src")
    return await (await page.request.get(source)).body()


async def steps(browser, address, n):
    """Milliseconds of steps of both sliders, and the size of an image in bytes."""
    page = await opened(browser, address)
    await asyncio.sleep(3)
    image = await image_of(page)
    with bare_page(image) as other:
        bare = await browser.new_page()
        await bare.goto(other)
        found = {"explorer": [], "bare page": []}
        for k in range(n):
            value = str((37 * k % 81 - 40) / 10)  # no two alike in a row
            arguments = [*EXPLORER, value]
            found["explorer"].append(await page.evaluate(STEP, arguments))
            arguments = ["input", "#face", value]
            found["bare page"].append(await bare.evaluate(STEP, arguments))
        await bare.close()
    await page.close()
    return found, len(image)


async def show_steps(browser, address, n):
    """Print the times of steps."""
    found, n_bytes = await steps(browser, address, n)
    print(f"{'':12}{'median':>8}{'95 %':>8}  ms, {n_bytes} bytes")
    for name, times in found.items():
        high = statistics.quantiles(times, n=20)[-1]
        print(f"{name:12}{statistics.median(times):8.0f}{high:8.0f}")


def megabytes(pid):
    """Memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) // 1024
    return 0


async def visit(browser, address, seed, seconds, counts):
    """One visitor, who must see at the end the image of the beginning."""
    choose = random.Random(seed)
    page = await opened(browser, address)
    page.on("pageerror", lambda error: counts.update(errors=counts["errors"] + 1))
    old = await page.locator("#face img").get_attribute("src")
    await page.get_by_label("Seed").fill(str(seed))
    await page.locator("#draw").click()
    await page.wait_for_function(
        "old => document.querySelector('#face img').getAttribute('src') !== old",
        arg=old,
        timeout=60_000,
    )
    first = await image_of(page)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        action = choose.choice(["slide", "slide", "slide", "click", "keep", "undo"])
        if action == "slide":
            slider = page.locator("#strength input[type=range]")
            await slider.fill(f"{choose.uniform(-5, 5):.1f}")
        elif action == "click":
            where = {"x": choose.uniform(20, 360), "y": choose.uniform(20, 360)}
            await page.locator("#face img").click(position=where)
        else:
            await page.locator(f"#{action}").click()
        counts["actions"] += 1
        await asyncio.sleep(choose.uniform(0.1, 0.6))
    for _ in range(20):  # again while others keep the server busy
        await page.locator("#shown").get_by_label("after").click()
        await page.locator("#shown").get_by_label("before").click()
        await asyncio.sleep(2)
        last = await image_of(page)
        same = [np.asarray(Image.open(io.BytesIO(image))) for image in (first, last)]
        if np.array_equal(*same):
            break
    else:
        counts["mixed up"] += 1
    await page.close()


async def visitors(browser, address, process, seconds):
    """Four visitors at once; print what happened."""
    counts = {"actions": 0, "errors": 0, "mixed up": 0}
    memory = []

    async def watch():
        for _ in range(5):
            memory.append(megabytes(process.pid))
            await asyncio.sleep(seconds / 4)

    await asyncio.gather(
        watch(), *(visit(browser, address, k, seconds, counts) for k in range(1, 5))
    )
    print(
        f"4 visitors, {seconds} s: "
        + ", ".join(f"{count} {name}" for name, count in counts.items())
        + f"; memory {', '.join(map(str, memory))} MB"
    )


@contextlib.asynccontextmanager
async def chromium():
    """A headless browser."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=ALONE)
        yield browser
        await browser.close()


async def run(options):
    """Run both parts, one after the other."""
    with explorer() as (address, process, _):
        async with chromium() as browser:
            await show_steps(browser, address, 20 if options.quick else 100)
            seconds = 10 if options.quick else 120
            await visitors(browser, address, process, seconds)


def quick_rows():
    """Rows for ``compare.py``: a step of the slider over one of a bare page's."""

    def sliding():
        with explorer() as (address, *_), asyncio.Runner() as runner:
            context = chromium()
            browser = runner.run(context.__aenter__())
            try:
                while True:
                    found, _ = runner.run(steps(browser, address, 20))
                    yield tuple(statistics.median(times) for times in found.values())
            finally:
                runner.run(context.__aexit__(None, None, None))

    return {"explorer, a step of the slider / bare page": sliding}


def main():
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few steps, ten seconds")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
