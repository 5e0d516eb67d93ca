"""What the page gives the browser: its style, and scripts."""

from __future__ import annotations

import base64

__all__ = ["CSS", "NAME", "SAVE", "as_text"]

CSS = """
footer { display: none !important; }
#explorer { max-width: 1240px; margin: 0 auto; }
#face img, #strip img { image-rendering: auto; width: 100%; object-fit: contain; }
#images .grid-container, #tiles .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(5.5rem, 1fr)) !important;
  grid-auto-rows: auto !important;
}
#tiles .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)) !important;
}
#images .thumbnail-item, #tiles .thumbnail-item { min-width: 0; aspect-ratio: auto; }
#images .grid-wrap, #tiles .grid-wrap {
  height: auto !important;
  max-height: none !important;
}
@media (max-width: 640px) { #face { max-height: 60vh; } }
"""

# Names the buttons that gradio leaves unnamed.
NAME = """
() => {
  const names = { face: "The image: click a point", strip: "At several strengths" };
  for (const [id, name] of Object.entries(names)) {
    const place = document.getElementById(id);
    const put = () => place.querySelectorAll("button:has(img)").forEach(
      (button) => button.setAttribute("aria-label", name));
    new MutationObserver(put).observe(place, { childList: true, subtree: true });
    put();
  }
}
"""

# Saves the file that ``as_text`` put into a hidden box.
SAVE = """
(text) => {
  if (!text) return;
  const [name, type, data] = text.split("\\n");
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
"""


def as_text(name: str, kind: str, data: bytes) -> str:
    """A file as the script takes it: its name, its type, its bytes in base64."""
    return "\n".join([name, kind, base64.b64encode(data).decode()])
