"""Style transfer on the studio's streets: a picture in a style, then the depth of every frame (section 5.3, Figure 5).

"Dynamic scenes lead to gradual loss of detail and synthesis failure, while stable scenes can be synthesized normally",
says the paper of its Figure 5 and measures nothing. Here every frame of a street is known in every style.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from rainlab import runs
from rainlab.config import Preset
from rainlab.data import dataset
from rainlab.data.studio import body, scene
from rainlab.measure import evaluate, metrics
from rainlab.method import sampling
from rainlab.method.rain import RAIN
from rainlab.training import stages

VERSION = 1  # raised when the numbers would come out differently
CAMERAS = ("stands", "moves")
WHOLE = ("psnr", "ssim", "tde", "sharpness_error")  # measures of clips
SECONDS = ("psnr", "sharpness_error")  # and of each second


def cameras(preset: Preset, record: bool = False) -> runs.Run:
    """The run that compares streets whose camera stands with those whose camera moves.

    Metrics of RAIN and of copying the reference (label ``method``) on the held-out clips, labels ``camera`` (CAMERAS):
    WHOLE; and SECONDS with label ``second``, of the driven frames. n: clips. ``record`` as in
    :func:`rainlab.measure.evaluate.measure`.
    """
    config, inputs = evaluate.describe(preset, "rain")
    return runs.made(partial(_cameras, preset), record, preset.name, "cameras", config, VERSION, inputs)


def _cameras(preset: Preset, run: runs.Run) -> None:
    held, moves = evaluate.held_out(preset), dataset.clips_of(preset.data, "test").cameras()
    if len(set(moves.tolist())) < 2:
        raise ValueError(f"got {len(moves)} test clips with one kind of camera, expected both; raise data.test_clips")
    second = round(preset.data.fps)
    for method in ("copy", "rain"):
        frames = evaluate.kept(preset, method, held)
        for camera, chosen in zip(CAMERAS, (~moves, moves), strict=True):
            labels = {"method": method, "camera": camera}
            whole = metrics.evaluate(frames[chosen], held.frames[chosen])
            for name in WHOLE:
                run.record(name, *metrics.bootstrap(whole[name]), metrics.PROTOCOL, **labels)
            for number, first in enumerate(range(0, frames.shape[1] - second + 1, second)):
                part = (x[chosen, first : first + second] for x in (frames, held.frames))
                values = metrics.evaluate(*part)
                for name in SECONDS:
                    run.record(name, *metrics.bootstrap(values[name]), metrics.PROTOCOL, **labels, second=number)


def behind(preset: Preset) -> list[runs.Run]:
    """The runs behind notebook `61_style_transfer`, those that are made."""
    found = [*stages.all_recorded(preset), *evaluate.there(preset, evaluate.OF_TASKS).values()]
    return found + [run] if (run := runs.existing(cameras, preset)) else found


def styled(
    preset: Preset,
    number: int,
    styles: Sequence[str],
    frames: int,
    model: RAIN,
    moving: bool = False,
    fast: bool = False,
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """One held-out street in several styles: ``(its depth, truth by style, results by style)``.

    Depth as condition pictures uint8 ``(f, h, w, 3)``, films like it; frame 0 in its style is the reference. ``fast``:
    as for a :class:`rainlab.method.stream.Stream`. Raises ValueError for a style that is not one of
    :data:`rainlab.data.studio.scene.STYLES`.
    """
    seed, size = body.split_seeds("test", 1, number), preset.data.size
    made = {name: scene.render(seed, frames, size, preset.data.fps, moving=moving, styles=name) for name in styles}
    truth = {name: each.frames[0].numpy() for name, each in made.items()}
    grey = (made[styles[0]].depth[0] * 255 + 0.5).byte()[..., None]
    depth = grey.expand(*grey.shape[:-1], 3).numpy()
    reference = np.stack([film[0] for film in truth.values()])
    options = evaluate.stream_options(preset, model) | {"fast": fast}
    films = sampling.stream(model, reference, np.repeat(depth[None], len(styles), 0), **options)
    return depth, truth, dict(zip(styles, films, strict=True))
