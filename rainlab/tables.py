"""The paper's three tables: its reported rows beside what was measured here, read from runs.

Each table is a pandas DataFrame of text: method, source ("reported in Table 1", "measured here"), the measures as
"value [low, high]" and n, the number of clips or rounds behind them. Reported numbers come without interval and n, and
stand for another data set, size and machine: `NOTES` says so under every table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

NONE = "–"  # not reported, or not measured


@dataclass(frozen=True)
class Reported:
    """A row of the paper (arXiv 2412.19489v1): the method's name there and its numbers, by column, as printed."""

    method: str
    numbers: Mapping[str, str]


def _reported(columns: str, rows: str) -> tuple[Reported, ...]:
    """Rows written as in the paper: the name, then one number for each of the columns, all parted by bars."""
    names = [name.strip() for name in columns.split("|")]
    lines = [[word.strip() for word in line.split("|")] for line in rows.strip().splitlines()]
    return tuple(Reported(method, dict(zip(names, numbers, strict=True))) for method, *numbers in lines)


TABLE1 = _reported(
    "PSNR ↑ | SSIM ↑ | LPIPS ↓ | FVD ↓",
    """
    MRAA                      | –      | 0.749 | 0.212 | 253.6
    TPSMM                     | –      | 0.746 | 0.213 | 247.5
    BDMM                      | 24.07  | 0.918 | 0.048 | 168.3
    DreamPose                 | –      | 0.885 | 0.068 | 238.7
    DreamPose, not fine-tuned | 34.75* | 0.879 | 0.111 | 279.6
    AnimateAnyone             | 38.49* | 0.931 | 0.044 | 81.6
    RAIN                      | 23.99  | 0.921 | 0.063 | 85.2
    """,
)
"""UBC-Fashion, 512 wide and 768 high. An asterisk marks the PSNR values that are "the results of overflow"."""
OVERFLOWED_RAIN = 37.20  # dB: what the paper says RAIN's PSNR would be, computed with the same overflow

TABLE2 = _reported(
    "frames/s ↑",
    """
    StreamDiffusion | 37.13
    Live2Diff       | 16.43
    RAIN            | 18.11
    """,
)
"""A single RTX 4090, 512×512; RAIN with TensorRT and TinyVAE, the pose detector's time included."""

TABLE3 = _reported(
    "PSNR ↑ | SSIM ↑ | LPIPS ↓ | FVD ↓",
    """
    K = 16              | 23.99 | 0.921 | 0.063 | 85.2
    K = 8               | 23.72 | 0.919 | 0.064 | 145.8
    K = 16, causal mask | 23.63 | 0.918 | 0.066 | 284.5
    """,
)
"""Section 5.4, UBC-Fashion."""

MEASURED = {
    "psnr": ("PSNR ↑", 2),
    "ssim": ("SSIM ↑", 3),
    "psnr_fg": ("PSNR fg ↑", 2),
    "ssim_fg": ("SSIM fg ↑", 3),
    "tde": ("motion error ↓", 2),
    "flicker": ("flicker ↓", 2),
    "flicker_border_ratio": ("at borders ↓", 2),
    "frames_per_second": ("frames/s ↑", 1),
    "speed": ("× DDIM ↑", 2),
    "latency_frames": ("latency, frames ↓", 0),
}
"""Metric of a run -> its column and the digits shown."""

NOTES = {
    "Table 1: quality": "Reported: UBC-Fashion at 768×512 (height × width). Measured here: held-out studio characters. Another data "
    "set at another size: nothing can be concluded from one kind of row to the other. * overflowed, see 40_table1_quality.",
    "Table 2: speed": "Reported: a single RTX 4090, 512×512. Measured here: a small network, small pictures, the machine named in "
    "the row. Only the ratio to DDIM, same network and machine, says something about the method.",
    "Table 3: ablations": "Reported: UBC-Fashion at 768×512. Measured here: held-out studio characters, one training each. Compare "
    "rows of one source only; our differences are reported, not asserted.",
}  # fmt: skip
