"""What every wing may read and write with: the project's root, atomic writes, JSON, checksums."""

import dataclasses
import hashlib
import json
import os
import secrets
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


def root() -> Path:
    """The project root: the nearest folder from here upwards whose pyproject.toml names rainlab, else this folder."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        file = folder / "pyproject.toml"
        if file.is_file() and tomllib.loads(file.read_text("utf-8")).get("project", {}).get("name") == "rainlab":
            return folder
    return here


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in `path`'s folder (made if missing, same suffix); rename it to `path` on success.

    After an error, or when the process is killed, `path` is as it was before: absent or the complete old file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def digest(path: str | os.PathLike) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: str | os.PathLike, sha256: str | None, fix: str) -> None:
    """Compare a file's sha256 with what it should be, or begin with; None: no checksum is known.

    Raises:
        ValueError: it is another, naming both and the ``fix``.
    """
    if sha256 and not (got := digest(path)).startswith(sha256):
        raise ValueError(f"{path}: got sha256 {got}, expected {sha256}: damaged, or another version; {fix}")


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Write `obj` as JSON, atomically: a list one element a line, anything else indented. See `plain` for the types."""
    obj = plain(obj)
    if isinstance(obj, list):
        text = "[\n" + ",\n".join(json.dumps(element, ensure_ascii=False) for element in obj) + "\n]"
    else:
        text = json.dumps(obj, indent=1, ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", "utf-8")


def plain(obj: Any) -> Any:
    """`obj` in JSON's own types. Raises TypeError for what has no such form, ValueError for NaN and infinity."""
    try:
        return json.loads(json.dumps(obj, default=_simpler, allow_nan=False))
    except ValueError as error:
        raise ValueError(f"got {obj!r}, expected finite numbers: JSON has no NaN or infinity; use None") from error


def _simpler(obj: Any) -> Any:
    if isinstance(obj, np.generic):
        return obj.item()
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return dataclasses.asdict(obj)
    raise TypeError(
        f"got {obj!r}, expected numbers, strings, None, lists, dicts or dataclasses: describe it by such values "
        "(a file by the hash of its content, in `inputs`)"
    )
