"""Pose pictures against the convention: colours, order, thickness, and what is left out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rainlab.data.pose import COLOURS, POINTS, draw

# fmt: off
PERSON = {"nose": (250, 97), "neck": (250, 164), "Rsho": (191, 164), "Relb": (160, 260), "Rwri": (150, 360),
          "Lsho": (309, 164), "Lelb": (330, 270), "Lwri": (360, 370), "Rhip": (215, 340), "Rkne": (225, 420),
          "Rank": (230, 500), "Lhip": (296, 350), "Lkne": (281, 430), "Lank": (274, 505), "Reye": (236, 73),
          "Leye": (262, 73), "Rear": (210, 80), "Lear": (290, 80)}
# fmt: on


def person(size=512):
    keypoints = torch.tensor([(*PERSON[name], 1.0) for name in POINTS])
    keypoints[:, :2] *= size / 512
    return keypoints


def middle(*names):
    x, y = np.mean([PERSON[n] for n in names], 0).round().astype(int)
    return y, x


def test_colours_and_limbs_of_the_convention():
    picture = draw(person(), (512, 512))
    # fmt: off
    points = {"nose": (255, 0, 0), "neck": (255, 85, 0), "Rsho": (255, 170, 0), "Rwri": (170, 255, 0),
              "Lsho": (85, 255, 0), "Lwri": (0, 255, 85), "Rank": (0, 170, 255), "Lhip": (0, 85, 255),
              "Lank": (85, 0, 255), "Reye": (170, 0, 255), "Lear": (255, 0, 85)}
    # fmt: on
    for name, colour in points.items():
        assert tuple(picture[middle(name)].tolist()) == colour, name
    # fmt: off
    limbs = {("neck", "Rsho"): (153, 0, 0), ("neck", "Lsho"): (153, 51, 0), ("Rsho", "Relb"): (153, 102, 0),
             ("neck", "Rhip"): (0, 153, 0), ("neck", "Lhip"): (0, 153, 153), ("Lkne", "Lank"): (0, 51, 153),
             ("neck", "nose"): (0, 0, 153), ("nose", "Reye"): (51, 0, 153), ("Leye", "Lear"): (153, 0, 102)}
    # fmt: on
    for ends, colour in limbs.items():
        assert np.allclose(picture[middle(*ends)].tolist(), colour, atol=1), ends
    assert picture[middle("Rhip", "Lhip")].sum() == 0  # no limb between the hips


def test_thickness_follows_the_picture():
    for size, limb, point in ((512, 8, 8), (1024, 16, 16), (64, 1.8, 2.2)):
        lit = draw(person(size), (size, size)).float().amax(-1) / 255
        x, y = (round(v * size / 512) for v in (250, 130))  # across the limb from neck to nose, and across a wrist
        assert (lit[y, x - size // 20 : x + size // 20].sum() / 0.6).item() == pytest.approx(limb, abs=0.25)
        alone = person(size)
        alone[:, 2] = torch.arange(18) == 4
        area = draw(alone, (size, size)).float().amax(-1).sum() / 255
        assert area.item() == pytest.approx(np.pi * point**2 / 4, rel=0.08)


def test_every_point_still_shows_at_64_pixels():
    picture = draw(person(64), (64, 64)).float()
    near = picture.permute(2, 0, 1)[None]
    for name, colour in zip(POINTS, COLOURS, strict=True):
        row, column = (round(v / 8) for v in middle(name))
        patch = near[0, :, row - 1 : row + 2, column - 1 : column + 2].flatten(1)
        assert (patch - torch.tensor(colour)[:, None]).abs().sum(0).min() < 160, name


def test_points_of_no_confidence_and_their_limbs_are_left_out():
    keypoints = person()
    keypoints[3] = torch.tensor([float("nan"), float("nan"), 0.0])  # the right elbow
    keypoints[0, 2] = 0.2
    picture, whole = draw(keypoints, (512, 512)), draw(person(), (512, 512))
    for gone in (("Relb",), ("Rsho", "Relb"), ("Relb", "Rwri"), ("nose",), ("neck", "nose"), ("nose", "Leye")):
        assert picture[middle(*gone)].sum() == 0 < whole[middle(*gone)].sum(), gone
    for kept in (("Rwri",), ("Reye", "Rear"), ("neck", "Rsho")):
        assert torch.equal(picture[middle(*kept)], whole[middle(*kept)])
    assert draw(torch.zeros(18, 3), (64, 48)).max() == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(-5, 5), st.integers(-5, 5))
def test_batches_and_shifts(seed, dx, dy):
    size = (64, 48)
    keypoints = torch.rand(2, 3, 18, 3, generator=torch.Generator().manual_seed(seed)) * torch.tensor([24, 40, 1.0])
    keypoints += torch.tensor([12, 12, 0.0])
    pictures = draw(keypoints, size)
    assert pictures.shape == (2, 3, 64, 48, 3) and pictures.dtype == torch.uint8
    assert torch.equal(pictures[1, 2], draw(keypoints[1, 2].numpy(), size))
    moved = draw(keypoints + torch.tensor([dx, dy, 0]), size)
    difference = moved[..., 5:-5, 5:-5, :].int() - pictures.roll((dy, dx), (2, 3))[..., 5:-5, 5:-5, :].int()
    assert difference.abs().max() <= 1


def test_points_off_the_picture_draw_what_remains_inside():
    keypoints = torch.zeros(18, 3)
    keypoints[1], keypoints[2] = torch.tensor([30.0, 20, 1]), torch.tensor([-30.0, 20, 1])
    picture = draw(keypoints, (64, 48))
    assert picture[20, :28].amax(-1).min() > 60
    assert draw(keypoints + torch.tensor([500.0, 0, 0]), (64, 48)).max() == 0


def test_hands_and_face_on_request_only():
    hands, face = torch.ones(2, 21, 3), torch.ones(68, 3)
    for side, x in ((0, 60), (1, 420)):
        hands[side, 1:, 0] = x + 8.0 * (torch.arange(20) // 4)
        hands[side, 1:, 1] = 420 - 14.0 * (torch.arange(20) % 4)
        hands[side, 0, :2] = torch.tensor([x + 16.0, 450])
    face[:, 0], face[:, 1] = 100 + 4.0 * (torch.arange(68) % 10), 30 + 6.0 * (torch.arange(68) // 10)
    body = draw(person(), (512, 512))
    both = draw(person(), (512, 512), hands, face)
    assert torch.equal(both[100:300, 200:300], body[100:300, 200:300])
    assert tuple(both[30, 100].tolist()) == (255, 255, 255)
    assert tuple(both[450, 76].tolist()) == (0, 0, 255) == tuple(both[420, 60].tolist())
    thumb = both[413, 60].tolist()  # on the thumb's second bone: hue 1/20 of the circle
    assert np.allclose(thumb, (255, 76.5, 0), atol=1)
    assert body[350:460, 40:110].sum() == 0 == body[20:70, 90:150].sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keypoints": torch.zeros(17, 3)}, r"keypoints has shape \(17, 3\); expected \(..., 18, 3\)"),
        ({"keypoints": torch.zeros(4, 18, 3), "face": torch.zeros(68, 3)}, r"face .* expected \(4, 68, 3\)"),
        ({"keypoints": torch.zeros(4, 18, 3), "hands": torch.zeros(4, 21, 3)}, r"hands .* expected \(4, 2, 21, 3\)"),
    ],
)
def test_bad_shapes(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(size=(64, 48), **arguments)
