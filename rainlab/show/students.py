"""A student of Talking Head Anime 4 in a live stream's place: poses drive it, and no window makes anybody wait.

StreamPanel(students.load(students.student(0)))  # of rainlab.measure.students; or tha.load(FOLDER), a tha.Performer
"""

import time
from collections.abc import Sequence

import numpy as np
import torch

from rainlab.baselines import tha
from rainlab.show.drivers import Driver
from rainlab.show.faces import AT_REST

Talker = tha.Student | tha.Performer


def size_of(talker: Talker) -> tuple[int, int]:
    """(height, width) of its pictures."""
    student = talker.student if isinstance(talker, tha.Performer) else talker
    return student.body.size, student.body.size


def draw(talker: Talker, pose: torch.Tensor) -> np.ndarray:
    """The picture of a pose ``(45,)`` on white, uint8 ``(h, w, 3)``."""
    return tha.on_white(talker.frame(pose))


def reference(talker: Talker) -> np.ndarray:
    """The character at rest."""
    return draw(talker, AT_REST[0, 0])


class Posed(Driver):
    """A driver of :mod:`rainlab.show.faces` whose samples are poses, and what it hands over, too: ``(n, 45)``."""

    def __init__(self, driver: Driver):
        self._driver = driver

    def sample(self, seconds: float) -> torch.Tensor:
        return self._driver.sample(seconds)

    def close(self) -> None:
        self._driver.close()

    def draw(self, samples: Sequence[torch.Tensor]) -> np.ndarray:
        return torch.stack(list(samples)).numpy()


class StudentStream:
    """What :class:`rainlab.show.live.Live` needs of a stream, for a student: conditions are poses ``(45,)``.

    Options of a :class:`rainlab.method.stream.Stream` have no meaning here and are ignored.
    """

    window = groups = steps_per_group = group_size = 1
    guidance, temporal_strength, seed = None, 1.0, 0

    def __init__(self, talker: Talker, **options: object):
        self._talker, self._own = talker, reference(talker)
        self.seconds = dict.fromkeys(("guider", "network", "decoder"), 0.0)

    def reference(self, picture: np.ndarray) -> None:
        """ValueError for any picture but its own."""
        if not np.array_equal(picture, self._own):
            raise ValueError("reference: a student has learned one character; train another one for this picture")

    def reset(self) -> None:
        """Nothing is kept."""

    def push(self, conditions: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Frames of poses, one each."""
        begin = time.perf_counter()
        frames = [draw(self._talker, torch.as_tensor(pose)) for pose in conditions]
        self.seconds["network"] += time.perf_counter() - begin
        return frames

    def flush(self) -> list[np.ndarray]:
        """Nothing is waiting."""
        return []
