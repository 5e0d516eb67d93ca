"""What documentation pages show, for tests to run."""

import re


def literal_blocks(path):
    """Literal blocks of a page, without their indentation."""
    found = re.findall(r"::\n\n((?:    .*\n|\n)+)", path.read_text())
    return [re.sub(r"^    ", "", block, flags=re.M).strip() for block in found]
