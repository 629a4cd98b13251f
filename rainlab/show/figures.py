"""One look for all figures, and the folder figures/ with the index that names notebook and runs behind each.

The colours are Paul Tol's "bright" scheme (https://personal.sron.nl/~pault/), distinguishable with any colour vision.
"""

import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rainlab.files import atomic_path, root
from rainlab.runs import Run

COLOURS = ("#4477AA", "#EE6677", "#228833", "#AA3377", "#CCBB44", "#66CCEE", "#777777")
INK, GREY, PALE = "#2B2F36", "#8A9099", "#E4E7EB"
ACCENT, CLEAN = "#C8475A", "#FBEFF0"  # what leaves and enters; frames that are out
NOISE = LinearSegmentedColormap.from_list("noise", ["#EDF3F8", "#A9C6DE", "#5B8DB8", "#2D5580", "#162D4C"])
STYLE = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 120,
}


def use_style() -> None:
    """Give your own matplotlib figures the look of this module's."""
    mpl.rcParams.update(STYLE)


def new_figure(width: float, height: float, **layout: Any) -> Figure:
    """An empty figure (inches) that no notebook shows a second time: closed, and drawn from then on by itself."""
    figure = plt.figure(figsize=(width, height), **layout)
    plt.close(figure)
    return figure


def folder() -> Path:
    """Where figures are kept: the environment variable RAINLAB_FIGURES, else `figures/` in the project root."""
    return Path(os.environ.get("RAINLAB_FIGURES") or root() / "figures")


def save(
    figure: Figure | Image.Image, name: str, caption: str, runs: Sequence[Run | str] = (), notebook: str = ""
) -> Path:
    """Write `<name>.png`, and of a figure `<name>.pdf`, into `folder()` and bring its index.md up to date; the same
    figure, or picture, gives the same bytes on one machine.

    The picture carries caption, notebook and run ids in its own text fields, and the index is made anew from all
    pictures there: nothing can drift apart, and a deleted figure leaves the index at the next call.
    """
    path, about = folder() / f"{name}.png", _about(name, caption, runs, notebook)
    with atomic_path(path) as temporary:
        if isinstance(figure, Image.Image):
            fields = PngInfo()
            for key, text in about.items():
                fields.add_itxt(key, text)
            figure.save(temporary, pnginfo=fields)
        else:
            figure.savefig(temporary, dpi=120, bbox_inches="tight", metadata=about | {"Software": None})
    if not isinstance(figure, Image.Image):
        made_by = f"{about['Source']} {about['Runs']}"
        known = {"Title": name, "Subject": caption, "Keywords": made_by, "CreationDate": None}
        with atomic_path(path.with_suffix(".pdf")) as temporary, mpl.rc_context({"pdf.fonttype": 42}):
            figure.savefig(temporary, format="pdf", dpi=120, bbox_inches="tight", metadata=known)
    _write_index()
    return path


def save_film(
    frames: np.ndarray,
    name: str,
    caption: str,
    runs: Sequence[Run | str] = (),
    notebook: str = "",
    fps: float = 12.0,
    scale: int = 2,
) -> Path:
    """Write frames ``uint8 (f, h, w, 3)`` as `<name>.webp` into `folder()`, with its line in the index like `save`."""
    path, about = folder() / f"{name}.webp", _about(name, caption, runs, notebook)
    with atomic_path(path) as temporary:
        temporary.write_bytes(webp(frames, fps, scale, xmp=json.dumps(about).encode()))
    _write_index()
    return path


def webp(frames: np.ndarray, fps: float, scale: int, **options: Any) -> bytes:
    """Frames ``uint8 (f, h, w, 3)`` as an animated WebP that runs forever, enlarged without smoothing."""
    first, *others = (Image.fromarray(frame) for frame in frames.repeat(scale, 1).repeat(scale, 2))
    data = io.BytesIO()
    first.save(data, "webp", save_all=True, append_images=others, duration=1000 / fps, loop=0, quality=80, **options)
    return data.getvalue()


def _about(name: str, caption: str, runs: Sequence[Run | str], notebook: str) -> dict[str, str]:
    """What a picture says of itself."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f"figure name: got {name!r}, expected letters, digits, '_' and '-': it names a file")
    ids = " ".join(getattr(run, "id", run) for run in runs)
    return {"Title": name, "Description": caption, "Source": notebook, "Runs": ids}


def _write_index() -> None:
    index = ""
    while index != (index := _index()):  # again if another process has saved a figure in between
        with atomic_path(folder() / "index.md") as temporary:
            temporary.write_text(index, "utf-8")


def _index() -> str:
    """index.md: one line for every picture and film in `folder()` that was saved here, sorted by name."""
    lines = ["# Figures", "", "| figure | notebook | runs | caption |", "|---|---|---|---|"]
    for path in sorted([*folder().glob("[!.]*.png"), *folder().glob("[!.]*.webp")]):
        with Image.open(path) as picture:
            about = json.loads(picture.info.get("xmp", "{}")) if path.suffix == ".webp" else picture.info
        if about.get("Title") == path.stem:
            notebook = about["Source"] and f"[{about['Source']}](../notebooks/{about['Source']}.ipynb)"
            runs = ", ".join(f"`{id}`" for id in about["Runs"].split())
            caption = " ".join(about["Description"].split()).replace("|", "\\|")
            lines.append(f"| [{path.stem}]({path.name}) | {notebook} | {runs} | {caption} |")
    return "\n".join(lines) + "\n"
