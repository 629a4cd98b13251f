"""The studio's streets as clips in many styles: what drives them is inverse depth (section 5.3)."""

from collections.abc import Sequence

import numpy as np
import torch

from rainlab.data.clips import PAUSE, StudioClips
from rainlab.data.studio import body, scene
from rainlab.data.studio.people import Lots


class StudioScenes(StudioClips):
    """Like :class:`rainlab.data.clips.StudioClips`, but streets, each in a style of its own that its frame 0 shows.

    moving: whether the camera moves; None: in half of the clips. styles: a name of `scene.STYLES` for all of them.
    """

    def __init__(self, *arguments, moving: bool | None = None, styles: str | None = None, **options):
        super().__init__(*arguments, **options)
        self.moving, self.styles = moving, styles

    def _made(self, seeds: torch.Tensor) -> tuple[scene.Scenes, Sequence[np.ndarray]]:
        moving = self._moves(seeds)
        pause = body.pauses(seeds, *PAUSE) if self.pause else None
        options = {"moving": moving, "styles": self.styles, "pause": pause}
        made = scene.render(seeds, self.frames, self.size, self.fps, **options)
        grey = (made.depth * 255 + 0.5).byte()[..., None]
        return made, grey.expand(*grey.shape[:-1], 3).numpy()

    def _moves(self, seeds: torch.Tensor) -> torch.Tensor:
        own = Lots(seeds)("camera moves") < 0.5
        return own if self.moving is None else torch.full_like(own, self.moving)

    def cameras(self) -> np.ndarray:
        """Whose camera moves, bool ``(count,)``."""
        return self._moves(body.split_seeds(self.split, self.count, self.start)).numpy()

    def fingerprint(self) -> dict:
        """All that determines the clips, for the hash of a run."""
        return super().fingerprint() | {"source": "scenes", "scene": scene.VERSION}
