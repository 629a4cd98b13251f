"""How well one face's landmarks become another's, and whether a model's faces do what their drivers do (section 5.2).

A driver with real proportions and a drawn character take the same poses. The driver's 68 points are turned into 26, the
character's own 26 are the truth. Where a head is, is the driver's affair: both are compared from the middle of the jaw.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from rainlab import runs
from rainlab.config import Preset, identity, override
from rainlab.data import detect, landmarks, video
from rainlab.data.studio import body, driver, face
from rainlab.data.studio.expression import POSE, expressions
from rainlab.files import digest, write_json
from rainlab.measure import evaluate, metrics, openings
from rainlab.method import sampling
from rainlab.method.rain import RAIN
from rainlab.training import stages

VERSION = 2  # raised when the numbers would come out differently
VERSIONS = {"face": face.VERSION, "driver": driver.VERSION, "studio": body.VERSION}
PROTOCOL = "landmarks-1"
WAYS = ("means of groups", "the 13 published transforms", "all of them but the first", "calibrated")
TURNS = (0.0, 0.1, 0.3, 0.6)  # from where on a head is turned so far, of what it can be
FPS = 12.0
DRIVEN = ("the character's own dots", "calibrated", "truth")
"""What moves a face: what it was trained with; a driver; nothing: true pictures, which show what can be seen."""


def pair(number: int, frames: int, by: int | None = None) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """A driver and a character of the test split: ``(driver's points (f, 68, 2), true dots (f, 26, 2), dots by WAYS)``.

    number: of the character; the driver and what it does are number ``by``, the same where None.
    Frame 0 shows both at rest, the others a motion. Every way is given the size and place that the faces have at rest,
    when both are seen.
    """
    who, whom, pose = cast(number, frames, by)
    points = driver.landmarks(whom, pose)[0].numpy()
    truth = landmarks.to_anime(face.landmarks(who, pose, (128, 128))[0][0].double().numpy(), ())
    made = {}
    for way, transforms in zip(WAYS, ((), landmarks.TRANSFORMS, landmarks.TRANSFORMS[1:], None), strict=True):
        if transforms is None:
            made[way] = landmarks.calibrate(points[0], truth[0])(points)
            continue
        dots = landmarks.to_anime(points, transforms)
        width, jaw = landmarks.face_width, landmarks.PARTS["jaw"]
        made[way] = (dots - dots[0, jaw].mean(0)) * width(truth[0]) / width(dots[0]) + truth[0, jaw].mean(0)
    return points, truth, made


def cast(number: int, frames: int, by: int | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Seeds of a character and a driver, and the poses ``(1, f, 45)`` that both take, first at rest."""
    by = number if by is None else by
    pose = expressions(body.split_seeds("test", 1, 2000 + by), torch.arange(frames, dtype=torch.float64) / FPS)
    pose[:, 0] = 0
    return body.split_seeds("test", 1, number), body.split_seeds("test", 1, 1000 + by), pose


def calibration(pairs: int = 64, frames: int = 48) -> runs.Run:
    """The run of the errors of WAYS, made unless it is recorded (seconds).

    Metrics, labels ``way`` and ``part`` (of `landmarks.PARTS`, and "all"): ``landmark_error``, the mean distance from
    the truth in per cent of the jaw's width; ``rest_error``, the same of faces at rest, which a calibration was fitted
    to; and of all parts ``turned_error``, label ``turned``: where heads are turned from there on (TURNS) to the next.
    n: pairs of driver and character, the unit of the intervals.
    """
    config = {"pairs": pairs, "frames": frames, "fps": FPS, "ways": WAYS, "turns": TURNS} | VERSIONS
    with suppress(FileNotFoundError):
        return runs.get(runs.run_id("calibration", config, VERSION))

    def make(run: runs.Run) -> None:
        errors: dict[tuple, list[float]] = {}
        jaw = landmarks.PARTS["jaw"]
        for number in range(pairs):
            _, truth, made = pair(number, frames)
            turned = np.digitize(cast(number, frames)[2][0, 1:, POSE.index("head_y")].abs(), TURNS) - 1
            for way, dots in made.items():
                here, there = (x - x[:, jaw].mean(1, keepdims=True) for x in (dots, truth))
                far = np.linalg.norm(here - there, axis=-1) / landmarks.face_width(truth).mean() * 100
                for part, members in (landmarks.PARTS | {"all": slice(None)}).items():
                    errors.setdefault(("landmark_error", way, part), []).append(far[1:, members].mean())
                    errors.setdefault(("rest_error", way, part), []).append(far[0, members].mean())
                for i in set(turned):
                    errors.setdefault(("turned_error", way, TURNS[i]), []).append(far[1:][turned == i].mean())
        for (name, way, which), values in errors.items():
            label = {"turned" if name == "turned_error" else "part": which}
            run.record(name, *metrics.bootstrap(values), PROTOCOL, way=way, **label)

    return runs.made(make, True, None, "calibration", config, VERSION)


def with_gaps(preset: Preset) -> Preset:
    """A face preset whose landmarks keep eyes open and mouth shut, all else the same (section 5.2)."""
    return override(preset, {"data.source": "faces with gaps"})


def following(
    preset: Preset,
    pairs: int = 32,
    frames: int = 48,
    record: bool = False,
    stage: str = "distill3d",
    inputs_from: Preset | None = None,
) -> runs.Run:
    """The run that tells whether the faces of a preset's model open and shut eyes and mouth when their drivers do.

    Metrics, labels ``driven`` (DRIVEN) and ``part`` (of `openings.NAMES`, and "eyes"): ``opening_correlation`` over
    the frames of a clip between how far the driver's part is open, by its 68 points, and how far the network of
    :mod:`rainlab.measure.openings` sees the result's open; n: pairs of driver and character, the unit of the intervals.

    Args:
        record: as in :func:`rainlab.measure.evaluate.measure`. stage: after which the networks are taken; those of
            images stream, too, each frame for itself. inputs_from: as in :func:`rainlab.training.stages.train_stage`.

    Raises:
        FileNotFoundError: nothing recorded, or no weights.
    """
    config = {"preset": preset.name, "stage": stage, "stream": identity(preset.stream), "size": preset.data.size,
              "pairs": pairs, "frames": frames, "fps": FPS} | VERSIONS  # fmt: skip
    seeing = runs.run_id("openings", openings.CONFIG, openings.VERSION)
    inputs = {"model": stages.Training(preset, stage, inputs_from).id, "openings": seeing}

    def make(run: runs.Run) -> None:
        model = stages.trained(preset, stage, evaluate.device(), inputs_from)
        told, films = driven(preset, range(pairs), frames, model)
        for way, film in films.items():
            seen = openings.seen(film)
            alike = np.array(
                [[_correlation(x, y) for x, y in zip(a.T, b.T, strict=True)] for a, b in zip(seen, told, strict=True)]
            )
            columns = dict(zip(openings.NAMES, alike.T, strict=True)) | {"eyes": alike[:, :2].mean(1)}
            for part, values in columns.items():
                run.record("opening_correlation", *metrics.bootstrap(values), PROTOCOL, driven=way, part=part)

    return runs.made(make, record, preset.name, "following", config, VERSION, inputs)


def behind(preset: Preset) -> list[runs.Run]:
    """The runs behind notebook `60_face_morphing`, those that are made."""
    gaps = with_gaps(preset)
    found = [runs.existing(runs.get, stages.Training(gaps, "stage1", preset).id), *stages.all_recorded(preset)]
    found += evaluate.there(preset, evaluate.OF_TASKS).values()
    streams = [(preset, stage, None) for stage in ("stage1", "stage2", "distill3d")] + [(gaps, "stage1", preset)]
    for which, stage, source in streams:
        found.append(runs.existing(partial(following, stage=stage, inputs_from=source), which))
    return [run for run in found if run]


def driven(
    preset: Preset,
    numbers: Sequence[int],
    frames: int,
    model: RAIN,
    by: int | None = None,
    ways: Sequence[str] = DRIVEN[:2],
    fast: bool = False,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Openings of the drivers ``(b, f, 3)``, and films of the characters, uint8 ``(b, f, h, w, 3)``.

    ``by``: as for :func:`pair`. Films: by those ``ways`` of DRIVEN that are streamed, and the truth. ``fast``: as for a
    :class:`rainlab.method.stream.Stream`.
    """
    size, told, truth = preset.data.size, [], []
    conditions: dict[str, list[np.ndarray]] = {way: [] for way in ways}
    for number in numbers:
        points, dots, made = pair(number, frames, by)
        who, _, pose = cast(number, frames, by)
        clip = face.render(who, pose=pose, size=size)
        radius = landmarks.dot_radius(clip.landmarks[0, 0].numpy(), size[0])
        drawn = dict(zip(DRIVEN, (dots, made["calibrated"]), strict=False))
        for way, pictures in conditions.items():
            pictures.append(np.stack([landmarks.draw(each, size, radius) for each in drawn[way]]))
        truth.append(clip.frames[0].numpy())
        told.append(openings.openings(points))
    films = {"truth": np.stack(truth)}
    options = evaluate.stream_options(preset, model) | {"fast": fast}
    for way, pictures in conditions.items():
        films[way] = sampling.stream(model, films["truth"][:, 0], np.stack(pictures), **options)
    return np.stack(told), {way: films[way] for way in DRIVEN if way in films}


def talking_head(film: str | Path | None = None, fps: float = FPS, device: str = "cpu") -> runs.Run:
    """The run that keeps what a detector finds in a film of a face: 68 points a frame, and nothing of the pictures.

    Args:
        film: a video file, read at ``fps``, or None for the newest that is recorded. Its points, in units of its
            height, are in the run's ``values.json`` (:func:`points_of`). device: of the detector.

    Metrics: ``frames``; ``found``, the share of them with a face.

    Raises:
        FileNotFoundError: nothing recorded, no such film, or no detector's files. ModuleNotFoundError: no package for
            them. ValueError: a film shorter than one frame at ``fps``, or a device that the detector can't use.
    """
    if film is None:
        if run := runs.find("talking_head"):
            return run
        raise FileNotFoundError("nothing recorded of a talking head: give a film of a face, and install .[detect]")
    find = detect.face_landmarks(device)
    config = {"detector": find.name, "fps": fps}

    def make(run: runs.Run) -> None:
        about, faces = video.probe(film), []
        moments = (np.arange(int(about["frames"] * fps / about["fps"])) * about["fps"] / fps).round().astype(int)
        if not len(moments):
            got = f"{about['frames']} frames at {about['fps']:g} a second"
            raise ValueError(f"{film}: got {got}, expected at least one at {fps:g} a second: give a longer film")
        for number, picture in enumerate(tqdm(video.iter_video(film), "frames", about["frames"], leave=False)):
            if times := int((moments == number).sum()):  # several where the film is slower
                face = find(picture)
                seen = np.full((landmarks.REAL, 2), np.nan) if face is None else face[:, :2] / picture.shape[0]
                faces += [seen] * times
        there = np.isfinite(faces).all((1, 2))
        run.record("frames", len(faces))
        run.record("found", there.mean(), n=len(faces))
        kept = [face.round(4).tolist() if seen else None for face, seen in zip(faces, there, strict=True)]
        write_json(run.path / runs.VALUES, {"points": kept})

    return runs.made(make, True, None, "talking_head", config, VERSION, {"film": digest(film)})


def points_of(run: runs.Run) -> np.ndarray:
    """Points ``(f, 68, 2)`` of :func:`talking_head`; a frame without a face has those of the one before."""
    faces = run.values()["points"]
    first = next((face for face in faces if face), None)
    if first is None:
        raise ValueError(f"{run.id}: got no face in {len(faces)} frames, expected a film of one")
    whole = []
    for points in faces:
        whole.append(points or (whole[-1] if whole else first))
    return np.array(whole)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Of two courses; 0 where one of them stands still, and so tells nothing."""
    return float(np.corrcoef(x, y)[0, 1]) if min(np.std(x), np.std(y)) > 1e-9 else 0.0
