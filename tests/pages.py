"""What documentation pages show, for tests to run."""

import re
from dataclasses import dataclass

# A line of Python that is shown, not run, says why in a comment before its block.
NOT_RUN = ".. not run:"


def literal_blocks(path):
    """Literal blocks of a page, without their indentation."""
    found = re.findall(
        r"^(?! *\.\. ).*::\n\n((?:    .*\n|\n)+)", path.read_text(), re.M
    )
    return [re.sub(r"^    ", "", block, flags=re.M).strip() for block in found]


@dataclass(frozen=True)
class Block:
    """A block of Python code: its first line's number, and whether it is to be run."""

    code: str
    line: int
    run: bool


def python_blocks(path):
    """Blocks under ``code-block:: python`` and hidden ones, ``testsetup::``."""
    lines = path.read_text().splitlines()
    blocks = []
    for number, line in enumerate(lines):
        match = re.match(r"( *)\.\. (code-block:: python|testsetup::)$", line)
        if not match:
            continue
        indent = len(match[1]) + 3
        body = []
        for one in lines[number + 1 :]:
            if one.strip() and len(one) - len(one.lstrip()) < indent:
                break
            body.append(one[indent:])
        before = next((one for one in lines[:number][::-1] if one.strip()), "")
        start = next(i for i, one in enumerate(body) if one.strip())
        blocks.append(
            Block("\n".join(body[start:]), number + start + 2, NOT_RUN not in before)
        )
    return blocks
