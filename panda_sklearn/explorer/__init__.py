"""A page in the browser, on which to look at parts and to edit images.

These modules do not know gradio:

- ``_explored``: what all visitors look at: an editor, and how latents are drawn.
- ``_session``: what one visitor has chosen, as a frozen value.
- ``_actions``: what a visitor can do, as functions from one session to the next.
- ``_views``: what a session looks like, as pictures and texts.
- ``_files``: edits, factors and photographs from visitors, read with care.

These make the page of them:

- ``_assets``: its style and scripts.
- ``_layout``: its components.
- ``_wiring``: how an event changes a session, and how the page then shows it.
- ``_events``: which function each event calls.
- ``_page``: the page as an app, and how it is launched.

``python -m panda_sklearn.explorer`` opens it on the face generator.
"""

from panda_sklearn.explorer._page import explore

__all__ = ["explore"]
