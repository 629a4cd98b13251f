"""Students of Talking Head Anime 4 against what the published code computes, region by region, and their files."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden.fill_rule import uniform
from goldens import golden, worst
from PIL import Image

from rainlab.baselines import siren, tha
from rainlab.data.studio.expression import POSE, pose_of

BOUNDS = {"face": 1e-4, "alpha": 1e-4, "colour": 1e-4, "grid": 1e-4, "warped": 1.2e-3, "blended": 1.2e-3}
STRIDES = {"face": 8, "blended": 16}  # of the stored ones; 32 for all others


def filled(network, prefix):
    """With the weights that the goldens were computed with."""
    first = True
    with torch.no_grad():
        for name, parameter in network.state_dict().items():
            u = torch.from_numpy(uniform(f"{prefix}/{name}", parameter.numel()))
            if "last_linear" in name:
                scale = 0.05 if name.endswith("bias") else 0.3 * math.sqrt(3 / parameter.shape[1])
            elif name.endswith("bias"):
                scale = 0.02
            else:
                inputs = parameter.shape[1]
                scale, first = (1 / inputs if first else math.sqrt(6 / inputs) / 30), False
            parameter.copy_((u * scale).float().view(parameter.shape))
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def student():
    image = F.interpolate(golden("tha4_students")["in/image_low32"], size=(512, 512), mode="bilinear")[0]
    return tha.Student(image, filled(siren.FaceMorpher(), "tha4/face"), filled(siren.BodyMorpher(), "tha4/body"))


def poses():
    return golden("tha4_students")["in/poses"]


@pytest.mark.parametrize("number", range(3))
def test_a_student_draws_what_the_published_code_draws(student, number):
    drawn = student.draw(poses()[number])._asdict() | {"face": student.face(poses()[number])}
    for name, bound in BOUNDS.items():
        stride = STRIDES.get(name, 32)
        expected = golden("tha4_students")[f"student/{number}/{'color' if name == 'colour' else name}"]
        assert worst(drawn[name][:, ::stride, ::stride], expected) < bound, name


def test_networks_have_as_many_parameters_as_published():
    counts = [sum(p.numel() for p in network.parameters()) for network in (siren.FaceMorpher(), siren.BodyMorpher())]
    assert counts == [121_476, 331_567]


@pytest.mark.parametrize("region", [(60, 170, 231, 345), (0, 0, 97, 512), (511, 511, 512, 512), (300, 1, 512, 2)])
def test_a_region_is_cut_out_of_the_whole(student, region):
    top, left, bottom, right = region
    whole, part = student.draw(poses()[0]), student.draw(poses()[0], region)
    for ours, all_ in zip(part, whole, strict=True):
        assert worst(ours, all_[:, top:bottom, left:right]) < 1e-4


def test_pixels_cost_their_number():
    """Of each coarser picture no more is drawn than what is looked at."""
    counts = [len(places) for places in siren.Pixels.of((100, 200, 228, 328)).places]
    assert counts[2] == 128**2 and counts[1] == 66**2 and counts[0] == 34**2
    assert [len(places) for places in siren.Pixels.of((0, 0, 512, 512)).places] == [128**2, 256**2, 512**2]


def test_scattered_pixels_are_those_of_the_whole(student):
    rng = np.random.default_rng(0)
    mask = rng.random((512, 512)) < 0.01
    pixels, pose = siren.Pixels.of(mask), poses()[2]
    assert (mask[pixels.rows, pixels.columns]).all() and len(pixels.rows) == mask.sum()
    whole, some = student.draw(pose), student.pixels(pose, pixels)
    for ours, all_ in zip(some, whole, strict=True):
        assert worst(ours, all_[:, pixels.rows, pixels.columns]) < 1e-4
    for wrong in (np.zeros((512, 512), bool), mask[:256], mask.astype(int)):
        with pytest.raises(ValueError, match=r"pixels: got .*, expected bool \(512, 512\)"):
            siren.Pixels.of(wrong)


def test_a_finer_picture_lies_between_the_coarser_ones_pixels():
    """As torch interpolates: every level's corners and shares on a picture of random numbers."""
    pixels = siren.Pixels.of((0, 0, 8, 8), 8, 3)
    for level, size in ((1, 2), (2, 4)):
        coarse = torch.rand(size, size, generator=torch.Generator().manual_seed(level))
        ours = (coarse.flatten()[pixels.corners[level]] * pixels.shares[level]).sum(0).reshape(2 * size, 2 * size)
        theirs = F.interpolate(coarse[None, None], scale_factor=2, mode="bilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(ours, theirs)


def test_the_face_is_in_its_place(student):
    pose = pose_of({"mouth_aaa": 1.0})[0].float()
    picture = student.with_face(pose)
    assert torch.equal(picture[:, 80:208, 192:320], student.face(pose))
    picture[:, 80:208, 192:320] = student.character[:, 80:208, 192:320]
    assert torch.equal(picture, student.character)


def test_colours_come_back():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (32, 32, 4), dtype=np.uint8)
    picture[0, :, 3] = 0
    made = tha.from_picture(picture)
    assert made.min() >= -1 and made.max() <= 1
    back = tha.to_picture(made).astype(int)
    there = picture[..., 3] > 16
    assert np.abs(back - picture)[there].max() <= 1 and (back[0, :, :3] == 0).all()
    half = np.array([[[255, 255, 255, 128]]], np.uint8)
    linear = (tha.from_picture(half)[:, 0, 0] + 1) / 2
    assert linear.tolist() == pytest.approx([128 / 255] * 4)
    assert tha.to_picture(tha.from_picture(half), straight=False)[0, 0, 0] == 188  # sRGB of 0.502


@pytest.fixture(scope="module")
def talker(student):
    """A student whose face moves alone: its body is its picture."""
    body = filled(siren.BodyMorpher(), "tha4/body")
    for parameter in body.last_linear.parameters():
        parameter.zero_()
    return tha.Student(student.character, student.face, body)


def test_only_pixels_that_move_are_drawn(talker):
    performer = tha.Performer(talker, poses(), reach=1)
    rows, columns = performer.pixels.rows, performer.pixels.columns
    assert 0 < len(rows) <= 130**2 and rows.min() >= 79 and rows.max() <= 208
    assert columns.min() >= 191 and columns.max() <= 320
    for pose in poses():
        whole = tha.to_picture(talker.draw(pose).blended, straight=False).astype(int)
        assert np.abs(performer.frame(pose, straight=False).astype(int) - whole).max() <= 1
    assert (performer.frame(poses()[1]) != performer.frame(poses()[2])).any()


def test_what_never_moves_can_not_perform(talker):
    with pytest.raises(ValueError, match="poses: got 2 that all look alike, expected some that differ"):
        tha.Performer(talker, poses()[:1].expand(2, -1))
    with pytest.raises(ValueError, match=r"poses: got shape \(45,\), expected \(n, 45\), two at least"):
        tha.Performer(talker, poses()[0])


@pytest.fixture
def folder(tmp_path, student):
    """A student as it is published: pickled weights, a picture, and a page that names them."""
    torch.save(student.face.state_dict(), tmp_path / "face.pt")
    torch.save(student.body.state_dict(), tmp_path / "body.pt")
    Image.fromarray(tha.to_picture(student.character)).save(tmp_path / "me.png")
    names = {
        "character_image_file_name": "me.png",
        "face_morpher_file_name": "face.pt",
        "body_morpher_file_name": "body.pt",
    }
    (tmp_path / "character_model.yaml").write_text("".join(f"{key}: {name}\n" for key, name in names.items()))
    return tmp_path


def test_published_files_are_read(folder, student):
    loaded, region = tha.load(folder), (100, 200, 164, 264)
    apart = loaded.draw(poses()[1], region).colour - student.draw(poses()[1], region).colour
    assert apart.abs().max() == 0  # the picture is rounded, what the networks say is not
    frame = loaded.frame(torch.zeros(len(POSE)))
    assert frame.shape == (512, 512, 4) and frame.dtype == np.uint8
    (folder / "character_model.yaml").unlink()
    for old, new in (("me.png", "character.png"), ("face.pt", "face_morpher.pt"), ("body.pt", "body_morpher.pt")):
        (folder / old).rename(folder / new)
    assert torch.equal(tha.load(folder).character, loaded.character)


def test_students_are_written_as_published_ones_are(folder, tmp_path):
    first = tha.load(folder)
    again = tha.load(tha.save(first, tmp_path / "written"))
    pose = pose_of({"mouth_aaa": 1.0})[0].float()
    assert torch.equal(again.face(pose), first.face(pose))
    assert np.array_equal(tha.to_picture(again.character), tha.to_picture(first.character))
    assert "face_morpher.pt" in (tmp_path / "written" / "character_model.yaml").read_text("utf-8")
    with pytest.raises(FileExistsError):
        tha.save(first, tmp_path / "written")
    for other in ({"corner": (0, 0)}, {"face": siren.FaceMorpher(64)}):
        with pytest.raises(ValueError, match="expected networks as published, 128 at"):
            tha.save(replace(first, **other), tmp_path / "other")


def test_what_is_no_student_is_refused(folder, student, tmp_path):
    about = folder / "character_model.yaml"
    pages = about.read_text()
    about.write_text("- 1\n")
    with pytest.raises(ValueError, match="expected names of files under character_image_file_name"):
        tha.load(folder)
    about.write_text(pages.replace("face.pt", "x.pt").replace("body.pt", "face.pt").replace("x.pt", "body.pt"))
    with pytest.raises(ValueError, match="got other weights than a FaceMorpher's.*mixed up"):
        tha.load(folder)
    about.write_text(pages.replace("face.pt", "../../face.pt"))  # a page can't name files elsewhere
    assert torch.equal(tha.load(folder).face.siren.last_linear.bias, student.face.siren.last_linear.bias)
    about.write_text(pages)
    Image.new("RGB", (512, 512)).save(folder / "me.png")
    with pytest.raises(ValueError, match="512×512, no part transparent, expected 512×512, the character"):
        tha.load(folder)
    Image.new("RGBA", (64, 32)).save(folder / "me.png")
    with pytest.raises(ValueError, match="got a picture of 64×32"):
        tha.load(folder)
    (folder / "face.pt").unlink()
    with pytest.raises(FileNotFoundError, match="face.pt is not there"):
        tha.load(folder)


def test_bad_poses_and_regions_are_refused(student):
    with pytest.raises(ValueError, match=r"expected \(45,\)"):
        student.draw(torch.zeros(1, 45))
    for region in ((0, 0, 0, 9), (0, 0, 513, 9), (-1, 0, 9, 9)):
        with pytest.raises(ValueError, match="region: got"):
            student.draw(poses()[0], region)
