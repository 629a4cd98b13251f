"""Which code a protocol's name stands for, so that a number's protocol can be told by a digest and not by a word.

The digest is of the code's tokens: comments, docstrings, layout and texts with values in them (f-strings) are not part
of it. `python -m rainlab.measure.protocols` prints all; a test holds them against DIGESTS.
"""

from __future__ import annotations

import hashlib
import tokenize
from importlib.util import find_spec
from pathlib import Path

MODULES = {
    "rainlab-1": ("metrics",),
    "studio-features-1": ("features",),
    "disco-legacy-1": ("legacy",),
    "ablations-1": ("ablations", "metrics"),
    "endless-3": ("endless", "metrics"),
    "landmarks-1": ("morphing", "metrics"),
    "face-openings-1": ("openings", "metrics"),
    "zero-shot-1": ("zero_shot", "metrics"),
    "designs-1": ("reference_designs", "metrics"),
    "students-1": ("students", "metrics"),
    "rotators-1": ("rotators", "metrics"),
    "talking-heads-1": ("talking_heads", "metrics"),
}
"""Protocol of a table or figure -> modules of this package that make its numbers."""
DIGESTS = {
    "rainlab-1": "5afe022500a5",
    "studio-features-1": "6585df2f3c1b",
    "disco-legacy-1": "832de4bfddc5",
    "ablations-1": "8fb4506644aa",
    "endless-3": "80b394283a66",
    "landmarks-1": "c68e30219934",
    "face-openings-1": "02fbd4738977",
    "zero-shot-1": "de7e0aad6b10",
    "designs-1": "443207e69eaa",
    "students-1": "bbb5479cbbd0",
    "rotators-1": "1113e6d3ae83",
    "talking-heads-1": "30f6b217c4e1",
}
"""Protocol -> digest. Code that changes and moves no number gets a new digest, code that moves one a new name."""
BETWEEN = {tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}  # of statements


def digest(protocol: str) -> str:
    """First 12 hexadecimal digits of the SHA-256 of a protocol's code. KeyError for an unknown one."""
    folder = Path(find_spec(__package__).submodule_search_locations[0])
    code = "\n".join(told(folder / f"{module}.py") for module in MODULES[protocol])
    return hashlib.sha256(code.encode()).hexdigest()[:12]


def told(path: Path) -> str:
    """The tokens of a file that say what it does, the same in every version of Python."""
    begin, end = (getattr(tokenize, f"FSTRING_{which}", None) for which in ("START", "END"))  # from 3.12 on
    kept, inside, alone = [], 0, True  # alone: nothing of the statement has come yet
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            inside += (token.type == begin) - (token.type == end)
            if token.type in (tokenize.COMMENT, tokenize.NL):
                continue
            if token.type in BETWEEN:
                alone = True
            elif inside or token.type == end:
                alone = False
            else:
                text = token.type == tokenize.STRING
                if not text or not (alone or "f" in token.string[: token.string.find(token.string[-1])].lower()):
                    kept.append(token.string)
                alone = False
    return " ".join(kept)


if __name__ == "__main__":
    for name in MODULES:
        print(f'    "{name}": "{digest(name)}",')
