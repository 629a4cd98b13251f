"""PoseAnimate's ablation (its Figure 5) with numbers: held-out characters, driven by somebody else's skeleton.

The driver is another held-out character in the same motion, smaller and to one side, so that alignment has something
to do; the truth is the character itself in that motion. RAIN and copying stand beside it, on the same conditions.

In one thing the whole is not the paper's: its masks are carried from the exact mask of the picture; those that cross-
attention sees are a variant. Steps and guidance are a small model's (OPTIONS, ``stream.guidance``), not 50 and 7.5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rainlab import runs
from rainlab.baselines import animate_anyone, dual_attention, image_models, pose_animate
from rainlab.config import Preset, identity
from rainlab.data import pose
from rainlab.data.studio import body
from rainlab.files import write_json
from rainlab.measure import evaluate, features, metrics
from rainlab.method import sampling
from rainlab.training import stages

VERSION = 1  # raised when the numbers would come out differently
PROTOCOL = "zero-shot-1"
CLIPS, FRAMES, GAP = 8, 16, 24  # frames behind a gap, as in a test clip
SMALLER, ASIDE, UP = 0.8, 0.12, 0.05  # the driver: its size, and how far away it stands in widths and heights
OPTIONS = {"steps": animate_anyone.STEPS, "inner": evaluate.ZERO_SHOT_INNER}
WHOLE = "PoseAnimate"
VARIANTS = {
    WHOLE: {},
    "without PACM": {"pacm": False},
    "without DCAM": {"dcam": False, "mgdm": False, "carried": False},
    "without MGDM": {"mgdm": False, "carried": False},
    "without PATA": {"pata": False},
    "masks by cross-attention": {"carried": False},
}
BESIDE = {"RAIN": "distill3d", "copying": ""}  # and the stage after which their networks are taken
MEASURES = ("psnr", "psnr_fg", "ssim", "sharpness_error", "warping_error", "id_studio", "lpips_studio", "consistency",
            "mask_iou")  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """One character and what is to be done with it; pictures uint8, ``f`` frames."""

    picture: np.ndarray  # (h, w, 3)
    silhouette: np.ndarray  # (h, w) bool
    points: Tensor  # its own, (18, 3)
    driver: Tensor  # (1 + f, 18, 3), the first at the time of the picture
    frames: np.ndarray  # the truth (f, h, w, 3)
    mask: np.ndarray
    flow: np.ndarray
    visible: np.ndarray


def scene(preset: Preset, number: int) -> Scene:
    """The held-out character ``number``; driven by the one 500 further on."""
    data, who = preset.data, body.split_seeds("test", 1, number)
    options = {"frames": GAP + FRAMES, "size": data.size, "fps": data.fps, "facing": data.facing}
    clip = body.render(who, who, **options)
    points = body.render(body.split_seeds("test", 1, number + 500), who, **options).keypoints[0].clone()
    middle = torch.tensor([data.width / 2, data.height / 2])
    away = torch.tensor([ASIDE * data.width, -UP * data.height])
    points[..., :2] = middle + SMALLER * (points[..., :2] - middle) + away
    driver = torch.cat([points[:1], points[GAP:]])
    frames, flow, visible = (getattr(clip, name)[0].numpy() for name in ("frames", "flow", "visible"))
    mask = clip.mask[0].numpy()
    parts = frames[GAP:], mask[GAP:], flow[GAP:], visible[GAP:]
    return Scene(frames[0], mask[0], clip.keypoints[0, 0], driver, *parts)


def conditions(one: Scene, pata: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Condition pictures: the picture's own ``(h, w, 3)`` and the frames' ``(f, h, w, 3)``, aligned by PATA or not."""
    targets = pose_animate.transition(one.points, one.driver, between=0) if pata else one.driver
    drawn = pose.draw(torch.cat([one.points[None], targets[1:]]), one.picture.shape[:2]).numpy()
    return drawn[0], drawn[1:]


def measure(preset: Preset, method: str, record: bool = False) -> runs.Run:
    """The run of one of VARIANTS or BESIDE on CLIPS characters.

    Metrics MEASURES, label ``method``, as far as they are defined: ``consistency`` is ID-studio of neighbouring
    frames, ``mask_iou`` how well the masks that a variant used cover the true ones, at the latents' size. ``record`` as
    in :func:`rainlab.measure.evaluate.measure`. The per-clip values stay in ``values.json``.

    Raises:
        ValueError: another method.
    """
    if method not in (known := [*VARIANTS, *BESIDE]):
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(known)}")
    about = VARIANTS.get(method, {})
    data = preset.data
    config = {"preset": preset.name, "method": method, "changes": about, "size": data.size, "fps": data.fps,
              "facing": data.facing, "clips": CLIPS, "frames": FRAMES, "gap": GAP, "away": (SMALLER, ASIDE, UP),
              "studio": body.VERSION, "stream": identity(preset.stream)}  # fmt: skip
    config |= OPTIONS if method in VARIANTS else {}
    stage = BESIDE.get(method, "stage1")
    inputs = {"model": stages.run_id(preset, stage)} if stage else {}
    inputs["features"] = runs.run_id("features", features.CONFIG, features.VERSION)

    def make(run: runs.Run) -> None:
        model, values = stages.trained(preset, stage, evaluate.device()) if stage else None, {}
        for number in range(CLIPS):
            for name, value in _values(scene(preset, number), *made(preset, method, number, model)).items():
                values.setdefault(name, []).append(value)
        for name, each in values.items():
            run.record(name, *metrics.bootstrap(each), PROTOCOL, method=method)
        write_json(run.path / runs.VALUES, values)

    return runs.made(make, record, preset.name, "zero_shot", config, VERSION, inputs)


def there(preset: Preset) -> dict[str, runs.Run]:
    """Method -> its run, of those that are recorded."""
    return runs.there(measure, preset, (*VARIANTS, *BESIDE))


def made(preset: Preset, method: str, number: int, model) -> tuple[np.ndarray, np.ndarray | None]:
    """Frames ``(f, h, w, 3)`` of a method for a character, and the masks it used at the latents' size, or None."""
    one, changes = scene(preset, number), dict(VARIANTS.get(method, {}))
    source, poses = conditions(one, changes.pop("pata", True))
    if method == "copying":
        return np.repeat(one.picture[None], len(poses), 0), None
    if method == "RAIN":
        options = evaluate.stream_options(preset, model)
        return sampling.stream(model, one.picture[None], poses[None], **options)[0], None
    small = image_models.Small(model)
    options = pose_animate.Options(guidance=preset.stream.guidance, carried=True, **OPTIONS)
    given = one.picture, source, poses, small.prompt(one.picture), replace(options, **changes), one.silhouette
    return pose_animate.animate(small, *given)


def _values(one: Scene, frames: np.ndarray, masks: np.ndarray | None) -> dict[str, float]:
    x, y = frames[None], one.frames[None]
    found = metrics.evaluate(x, y, one.mask[None])
    found["warping_error"] = metrics.warping_error(x, one.flow[None], one.visible[None])
    if features.fits(frames.shape[1:3]):
        found |= {"id_studio": features.identity(x, y), "lpips_studio": features.perceptual(x, y)}
        found["consistency"] = features.identity(x[:, 1:], x[:, :-1])
    if masks is not None:
        truth = dual_attention.resized(torch.from_numpy(one.mask), masks[0].size).bool().numpy().reshape(masks.shape)
        found["mask_iou"] = [(masks & truth).sum() / max((masks | truth).sum(), 1)]
    return {name: float(np.asarray(found[name])[0]) for name in MEASURES if name in found}
