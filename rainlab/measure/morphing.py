"""How well one face's landmarks become another's: the error of dots whose truth is known (section 5.2).

A driver with real proportions and a drawn character take the same poses. The driver's 68 points are turned into 26, the
character's own 26 are the truth. Where a head is, is the driver's affair: both are compared from the middle of the jaw.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import torch

from rainlab import runs
from rainlab.data import landmarks
from rainlab.data.studio import body, driver, face
from rainlab.data.studio.expression import expressions
from rainlab.measure import metrics

VERSION = 2  # raised when the numbers would come out differently
PROTOCOL = "landmarks-1"
WAYS = ("means of groups", "the 13 published transforms", "calibrated")
FPS = 12.0


def pair(number: int, frames: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """A driver and a character of the test split: ``(driver's points (f, 68, 2), true dots (f, 26, 2), dots by WAYS)``.

    Frame 0 shows both at rest, the others a motion. Every way is given the size and place that the faces have at rest,
    when both are seen.
    """
    who, whom = body.split_seeds("test", 1, number), body.split_seeds("test", 1, 1000 + number)
    pose = expressions(body.split_seeds("test", 1, 2000 + number), torch.arange(frames, dtype=torch.float64) / FPS)
    pose[:, 0] = 0
    points = driver.landmarks(whom, pose)[0].numpy()
    truth = landmarks.to_anime(face.landmarks(who, pose, (128, 128))[0][0].double().numpy(), ())
    made = {}
    for way, transforms in zip(WAYS, ((), landmarks.TRANSFORMS, None), strict=True):
        if transforms is None:
            made[way] = landmarks.calibrate(points[0], truth[0])(points)
            continue
        dots = landmarks.to_anime(points, transforms)
        width, jaw = landmarks.face_width, landmarks.PARTS["jaw"]
        made[way] = (dots - dots[0, jaw].mean(0)) * width(truth[0]) / width(dots[0]) + truth[0, jaw].mean(0)
    return points, truth, made


def calibration(pairs: int = 64, frames: int = 48) -> runs.Run:
    """The run of the errors of WAYS, made unless it is recorded (seconds).

    Metrics, labels ``way`` and ``part`` (of `landmarks.PARTS`, and "all"): ``landmark_error``, the mean distance from
    the truth in per cent of the jaw's width, and ``rest_error``, the same of faces at rest; n: pairs of driver and
    character, the unit of the intervals.
    """
    versions = {"face": face.VERSION, "driver": driver.VERSION, "studio": body.VERSION}
    config = {"pairs": pairs, "frames": frames, "fps": FPS} | versions
    with suppress(FileNotFoundError):
        return runs.get(runs.run_id("calibration", config, VERSION))
    run = runs.open_run("calibration", config, VERSION)
    with run.lock():
        if run.finished:
            return run
        errors: dict[tuple[str, str, str], list[float]] = {}
        jaw = landmarks.PARTS["jaw"]
        for number in range(pairs):
            _, truth, made = pair(number, frames)
            for way, dots in made.items():
                here, there = (x - x[:, jaw].mean(1, keepdims=True) for x in (dots, truth))
                far = np.linalg.norm(here - there, axis=-1) / landmarks.face_width(truth).mean() * 100
                for part, members in (landmarks.PARTS | {"all": slice(None)}).items():
                    errors.setdefault(("landmark_error", way, part), []).append(far[1:, members].mean())
                    errors.setdefault(("rest_error", way, part), []).append(far[0, members].mean())
        for (name, way, part), values in errors.items():
            run.record(name, *metrics.bootstrap(values), PROTOCOL, way=way, part=part)
        return run.finish()
