"""Talking Head Anime 4 (Khungurn): one character as two small networks that are drawn pixel by pixel.

A *student* is a picture of a character, a network for its face and one for its body (:mod:`rainlab.baselines.siren`).
Files of published students run as they are. A *performer* draws of a student only what moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from rainlab.baselines.siren import FACE, SIZE, BodyMorpher, Drawn, FaceMorpher, Pixels, Region
from rainlab.data.studio.expression import POSE
from rainlab.data.video import read_rgba
from rainlab.method import pretrained

CORNER = (80, 192)  # where the face is pasted: row and column of its upper left pixel
FILES = {"character_image_file_name": "character.png", "face_morpher_file_name": "face_morpher.pt",
         "body_morpher_file_name": "body_morpher.pt"}  # fmt: skip


# -- colours ---------------------------------------------------------------------------------------------------------


def from_picture(picture: np.ndarray) -> Tensor:
    """sRGB with alpha, uint8 ``(h, w, 4)`` -> as the networks have it, linear, times alpha, -1 to 1: ``(4, h, w)``."""
    x = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 255
    colour, alpha = x[:3], x[3:]
    linear = torch.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return torch.cat([linear * alpha, alpha]) * 2 - 1


def to_picture(made: Tensor, straight: bool = True) -> np.ndarray:
    """The way back: float ``(4, h, w)`` -> sRGB with alpha, uint8 ``(h, w, 4)``.

    straight: colours as a PNG file has them; False: times alpha, as they are shown on black.
    """
    return levels(made, straight).cpu().numpy()


def levels(made: Tensor, straight: bool = True) -> Tensor:
    """:func:`to_picture` as a tensor."""
    return (_displayed(made, straight).permute(1, 2, 0) * 255 + 0.5).clamp(0, 255).byte()


def _displayed(made: Tensor, straight: bool) -> Tensor:
    """sRGB with alpha in [0, 1], ``(4, h, w)``."""
    x = ((made + 1) / 2).clamp(0, 1)
    colour, alpha = x[:3], x[3:]
    if straight:
        colour = torch.where(alpha > 1e-5, colour / alpha.clamp(min=1e-5), 0.0).clamp(0, 1)
    return torch.cat([_srgb(colour), alpha])


def on_white(picture: np.ndarray) -> np.ndarray:
    """A picture with alpha as a page shows it: uint8 ``(…, 4)`` -> ``(…, 3)``."""
    picture = picture.astype(np.float32)
    return (255.5 + (picture[..., :3] - 255) * (picture[..., 3:] / 255)).astype(np.uint8)


def _srgb(linear: Tensor) -> Tensor:
    return torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


# -- a character -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Student:
    """A character: its picture float ``(4, size, size)``, its networks, and where its face's upper left pixel is."""

    character: Tensor
    face: FaceMorpher
    body: BodyMorpher
    corner: tuple[int, int] = CORNER

    def draw(self, pose: Tensor, region: Region | None = None) -> Drawn:
        """The character in a pose ``(45,)``, or a region of the picture, ``(c, h, w)`` each."""
        top, left, bottom, right = region = region or (0, 0, self.body.size, self.body.size)
        flat = self.pixels(pose, self.body.pixels(region))
        return Drawn(*(x.reshape(-1, bottom - top, right - left) for x in flat))

    @torch.inference_mode()
    def pixels(self, pose: Tensor, pixels: Pixels) -> Drawn:
        """Some pixels of the character in a pose ``(45,)``. ValueError for another shape."""
        pose = torch.as_tensor(pose, dtype=self.character.dtype, device=self.character.device)
        if pose.shape != (len(POSE),):
            raise ValueError(f"pose: got shape {tuple(pose.shape)}, expected ({len(POSE)},): see `expression.pose_of`")
        return self.body(self.with_face(pose), pose, pixels)

    def with_face(self, pose: Tensor) -> Tensor:
        """The character's picture with the face of a pose."""
        (top, left), size = self.corner, self.face.size
        picture = self.character.clone()
        picture[:, top : top + size, left : left + size] = self.face(pose)
        return picture

    def frame(self, pose: Tensor, straight: bool = True) -> np.ndarray:
        """The picture of a pose, uint8 ``(size, size, 4)``: see :func:`to_picture`."""
        return to_picture(self.draw(pose).blended, straight)


class Performer:
    """Frames of a student in some kind of motion: what moves in it is drawn, all else stays as it is.

    poses: ``(n, 45)`` of that motion, many and far apart: a pixel moves that any of them shows otherwise than the
    first, by half a grey level, or that lies within ``reach`` pixels of such a one. As long as poses lie among those,
    a frame is the whole picture's to one grey level.
    """

    def __init__(self, student: Student, poses: Tensor, reach: int = 3):
        if poses.ndim != 2 or poses.shape[1] != len(POSE) or len(poses) < 2:
            raise ValueError(f"poses: got shape {tuple(poses.shape)}, expected (n, {len(POSE)}), two at least")
        begun = student.draw(poses[0]).blended
        self.student, first, moves = student, _shown(begun), None
        for pose in tqdm(poses[1:], "what moves", leave=False):
            moved = (_shown(student.draw(pose).blended) - first).abs().amax(0) > 0.5
            moves = moved if moves is None else moves | moved
        if not moves.any():
            raise ValueError(f"poses: got {len(poses)} that all look alike, expected some that differ")
        near = F.max_pool2d(moves[None].float(), 2 * reach + 1, 1, reach)[0] > 0
        self.pixels = student.body.pixels(near.cpu())
        self._rest = {straight: to_picture(begun, straight) for straight in (False, True)}

    @property
    def share(self) -> float:
        """Of the picture, how much is drawn."""
        return len(self.pixels.rows) / self.student.body.size**2

    def frame(self, pose: Tensor, straight: bool = True) -> np.ndarray:
        """The picture of a pose ``(45,)``, uint8 ``(size, size, 4)``: see :func:`to_picture`."""
        made = self.student.pixels(pose, self.pixels).blended
        picture = self._rest[straight].copy()
        picture[self.pixels.rows, self.pixels.columns] = to_picture(made[..., None], straight)[:, 0]
        return picture


def _shown(made: Tensor) -> Tensor:
    """As it is shown on black, in grey levels before they are rounded: ``(4, h, w)``."""
    return _displayed(made, straight=False) * 255


def read_character(path: str | Path) -> np.ndarray:
    """A character's picture, uint8 ``(512, 512, 4)``. ValueError for another size, or without transparent ground."""
    picture = read_rgba(path)
    if picture.shape[:2] != (SIZE, SIZE) or picture[..., 3].min() == 255:
        kind = f"{picture.shape[1]}×{picture.shape[0]}" + ", no part transparent" * int(picture[..., 3].min() == 255)
        expected = f"{SIZE}×{SIZE}, the character on transparent ground"
        raise ValueError(f"{path}: got a picture of {kind}, expected {expected}")
    return picture


def save(student: Student, folder: str | Path) -> Path:
    """Write a student as published ones are, for :func:`load` and the published programs; returns the folder.

    Raises:
        ValueError: its networks, or the place of its face, are others than published students have.
        FileExistsError: the folder is there.
    """
    from PIL import Image

    shapes = [
        {name: tuple(x.shape) for part in pair for name, x in part.state_dict().items()}
        for pair in ((student.face, student.body), (FaceMorpher(), BodyMorpher()))
    ]
    if shapes[0] != shapes[1] or (student.corner, student.face.size, student.body.size) != (CORNER, FACE, SIZE):
        got = f"a face of {student.face.size} pixels at {student.corner} in {student.body.size}"
        raise ValueError(f"student: got {got}, expected networks as published, {FACE} at {CORNER} in {SIZE}")
    folder = Path(folder)
    folder.mkdir(parents=True)
    Image.fromarray(to_picture(student.character)).save(folder / FILES["character_image_file_name"])
    for key, part in (("face_morpher_file_name", student.face), ("body_morpher_file_name", student.body)):
        torch.save(part.state_dict(), folder / FILES[key])
    about = "".join(f"{key}: {name}\n" for key, name in FILES.items())
    (folder / "character_model.yaml").write_text(about, "utf-8")  # last: it says that all is there
    return folder


def load(folder: str | Path) -> Student:
    """A published student: a folder with ``character_model.yaml`` and what it names, or with files of the usual names.

    Raises:
        FileNotFoundError: a file is not there. ValueError: weights of another network, a picture of another size or
            without alpha, or a damaged file.
    """
    import yaml

    folder, names = Path(folder), dict(FILES)
    if (about := folder / "character_model.yaml").exists():
        told = yaml.safe_load(about.read_text("utf-8"))
        if not isinstance(told, dict) or not all(isinstance(told.get(key), str) for key in FILES):
            raise ValueError(f"{about}: got {told!r}, expected names of files under {', '.join(FILES)}")
        names = told
    image, face_file, body_file = (folder / Path(names[key]).name for key in FILES)
    for path in (image, face_file, body_file):
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there; a student has a picture and two files of weights")
    student = Student(from_picture(read_character(image)), FaceMorpher(), BodyMorpher())
    for network, file in ((student.face, face_file), (student.body, body_file)):
        held, own = pretrained.mapped(file), network.state_dict()
        if {k: v.shape for k, v in held.items()} != {k: v.shape for k, v in own.items()}:
            odd = next((k for k in own if k not in held or held[k].shape != own[k].shape), next(iter(held), None))
            name = type(network).__name__
            raise ValueError(
                f"{file}: got other weights than a {name}'s, {odd} differs; check that files aren't mixed up"
            )
        network.load_state_dict(held)
        network.eval().requires_grad_(False)
    return student
