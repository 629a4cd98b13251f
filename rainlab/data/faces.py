"""The studio's faces as clips: what drives them are dots, 26 landmarks of the face to be made (section 5.2)."""

from collections.abc import Sequence

import numpy as np
import torch

from rainlab.data import landmarks
from rainlab.data.clips import PAUSE, StudioClips
from rainlab.data.studio import body, face
from rainlab.data.studio.expression import POSE, expressions

FACING = 0.3  # how much of its rotations a face shows that faces the camera
TURNS = [POSE.index(name) for name in ("head_x", "head_y", "neck_z", "body_y", "body_z")]
MORPHS = slice(POSE.index("eyebrow_troubled_left"), POSE.index("mouth_smirk") + 1)
OPENINGS = [i for i, name in enumerate(POSE) if name.startswith(("eye_", "mouth_"))]


class StudioFaces(StudioClips):
    """Like :class:`rainlab.data.clips.StudioClips`, but faces that speak and look about.

    facing: frame 0 shows brows, lids and mouth at rest, nearly from the front. gaps: the landmarks of eyes and
    mouth are those of the face at rest, whatever it does: how we read the gaps that a detector of real faces leaves on
    drawn ones (section 5.2).
    """

    def __init__(self, *arguments, gaps: bool = False, **options):
        super().__init__(*arguments, **options)
        self.gaps = gaps

    def _made(self, seeds: torch.Tensor) -> tuple[face.FaceClips, Sequence[np.ndarray]]:
        poses = torch.cat([self._poses(seed) for seed in seeds.split(1)])
        made = face.render(seeds, size=self.size, pose=poses)
        points = made.landmarks
        if self.gaps:
            poses[..., OPENINGS] = 0
            points, _ = face.landmarks(seeds, poses, self.size)
        conditions = []
        for real, dots in zip(made.landmarks.numpy(), landmarks.to_anime(points.numpy(), ()), strict=True):
            radius = landmarks.dot_radius(real[0], self.size[0])
            conditions.append(np.stack([landmarks.draw(each, self.size, radius) for each in dots]))
        return made, conditions

    def _poses(self, seed: torch.Tensor) -> torch.Tensor:
        """``(1, f, 45)``."""
        number = torch.arange(self.frames, dtype=torch.float64)
        if self.pause:
            number = number + body.pauses(seed, *PAUSE) * (number > 0)
        poses = expressions(seed, number / self.fps)
        if self.facing:
            poses[:, 0, MORPHS] = 0
            poses[:, 0, TURNS] *= FACING
        return poses

    def fingerprint(self) -> dict:
        """All that determines the clips, for the hash of a run."""
        return super().fingerprint() | {"source": "faces", "face": face.VERSION}
