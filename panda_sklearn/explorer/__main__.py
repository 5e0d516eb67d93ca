"""``python -m panda_sklearn.explorer``: the page, on the face generator."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from types import FrameType


def main() -> None:
    """Serve the page, and delete its files when it ends."""
    parser = argparse.ArgumentParser(
        prog="python -m panda_sklearn.explorer",
        description="Serve a page on which to look at the face generator's parts and "
        "to edit its images.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument(
        "--port",
        type=int,
        default=None,
        help="port to listen on; default: the first free one from 7860",
    )
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="panda_explorer_")
    # Gradio reads these when it is imported.
    os.environ["GRADIO_TEMP_DIR"] = folder
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    try:
        serve(options.host, options.port)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def serve(host: str, port: int | None) -> None:
    """Serve the page until it is interrupted."""
    from panda_sklearn.datasets import load_face_edits
    from panda_sklearn.explorer._explored import Explored
    from panda_sklearn.explorer._page import page_of

    editor, _ = load_face_edits()
    recipe = (
        "from panda_sklearn.datasets import load_face_edits\n"
        "editor, _ = load_face_edits(truncation=TRUNCATION)"
    )
    app = page_of(Explored(editor, None, (-1.0, 1.0), recipe))
    app.launch(server_name=host, server_port=port, inbrowser=False)


if __name__ == "__main__":
    main()
