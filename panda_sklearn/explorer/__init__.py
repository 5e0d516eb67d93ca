"""A page to look at parts, click, and edit, in a browser.

Floor 5 of the package, and of its modules none knows gradio but the last:

- ``_explored``: what all visitors look at: an editor, how latents are drawn.
- ``_session``: what one visitor has chosen, as a frozen value.
- ``_actions``: what a visitor can do: functions from one session to the next.
- ``_views``: what there is to see of a session, as pictures and texts.
- ``_files``: edits, factors and photographs from visitors, read with care.
- ``_page``: the page, which wires these.

``python -m panda_sklearn.explorer`` opens it on the face generator.
"""

from panda_sklearn.explorer._page import explore

__all__ = ["explore"]
