"""Drivers: what hands, keys, files and cameras make of a skeleton."""

import math
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rainlab.data import pose
from rainlab.data.clips import StudioClips
from rainlab.data.video import VideoError, write_video
from rainlab.show.drivers import Camera, Film, Motion, Skeleton, Walk, gallery, reference

SIZE = (64, 48)
LIMBS = [(2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 10), (11, 12), (12, 13), (1, 2), (1, 5), (1, 8), (1, 11), (1, 0)]


def lengths(points):
    return np.array([math.dist(points[a, :2], points[b, :2]) for a, b in LIMBS])


def test_a_motion_is_the_studios_own():
    """Drawn at the moments of a clip's frames it gives that clip's condition pictures."""
    clip = StudioClips("test", count=1, frames=6, size=SIZE, facing=True)[0]
    driver = Motion(SIZE, character=0, motion=0)
    moments = [driver.sample(frame / 12) for frame in range(6)]
    assert np.array_equal(driver.draw(moments), clip.condition)


def test_a_motion_ends_where_it_is_told_to():
    driver = Motion(SIZE, seconds=0.5)
    assert driver.sample(0.49) == 0.49
    with pytest.raises(StopIteration):
        driver.sample(0.5)
    assert Motion(SIZE).draw([Motion(SIZE).sample(1e4)]).shape == (1, *SIZE, 3)


places = st.tuples(st.integers(0, 17), st.floats(-30, 90), st.floats(-30, 90))


@settings(max_examples=60)
@given(st.lists(places, min_size=1, max_size=12))
def test_limbs_keep_their_length_wherever_joints_are_dragged(drags):
    driver = Skeleton(SIZE)
    before = lengths(driver.points)
    for joint, x, y in drags:
        driver.drag(joint, x, y)
        assert np.isfinite(driver.points).all()
    assert np.allclose(lengths(driver.points), before, atol=1e-3)
    driver.reset()
    assert np.array_equal(driver.points, Skeleton(SIZE).points)


def test_a_hand_goes_where_it_is_dragged_and_takes_nothing_but_its_arm_along():
    driver = Skeleton(SIZE)
    rest = driver.points
    goal = rest[2, :2] + [-3.0, -4.0]
    driver.drag(4, *goal)
    assert np.allclose(driver.points[4, :2], goal, atol=1e-3)
    assert np.flatnonzero((driver.points != rest).any(1)).tolist() == [3, 4]


def test_an_arm_bends_on_the_side_it_bent_before():
    driver = Skeleton(SIZE)

    def side():
        root, elbow, hand = driver.points[[2, 3, 4], :2]
        return np.sign(np.cross(np.append(elbow - root, 0), np.append(hand - root, 0))[2])

    before, shoulder = side(), driver.points[2, :2]
    for angle in np.linspace(0, 2 * np.pi, 9):
        driver.drag(4, *(shoulder + 5 * np.array([math.cos(angle), math.sin(angle)])))
        assert side() == before


def test_an_elbow_carries_its_hand_and_the_neck_the_whole_body():
    driver = Skeleton(SIZE)
    rest = driver.points
    driver.drag(3, *(rest[2, :2] + [-9, 0]))
    assert np.allclose(driver.points[4] - driver.points[3], rest[4] - rest[3])
    driver.reset()
    driver.drag(1, *(rest[1, :2] + [2, 1]))
    assert np.allclose(driver.points[:, :2] - rest[:, :2], [2, 1])
    driver.drag(1, 1e4, 0)
    assert driver.points[:, 0].max() <= SIZE[1] - 1


def test_a_head_nods_no_further_than_necks_do():
    driver = Skeleton(SIZE)
    neck = driver.points[1, :2]
    driver.drag(0, *(neck + [0, 20]))
    head = driver.points[list(Skeleton.HEAD), :2].mean(0) - neck
    assert abs(math.atan2(head[0], -head[1])) <= Skeleton.NOD + 1e-6
    assert np.array_equal(driver.points[1, :2], neck)


@pytest.mark.parametrize("wrong", [(18, 1, 1), (-1, 1, 1), ("nose", 1, 1), (0, math.nan, 1), (0, 1, math.inf)])
def test_no_joint_no_drag(wrong):
    with pytest.raises(ValueError, match="expected one of 0 … 17 and finite"):
        Skeleton(SIZE).drag(*wrong)


def run(driver, keys, seconds, start=0.0):
    driver.press(keys)
    return [driver.sample(start + t) for t in np.arange(0, seconds, 1 / 12)][-1]


def test_keys_walk_turn_and_raise_arms():
    assert run(Walk(SIZE), ["right"], 1)["x"] > 0.1 > -0.1 > run(Walk(SIZE), ["left"], 1)["x"]
    assert abs(run(Walk(SIZE), ["right"], 60)["x"]) <= Walk.REACH + 1e-9
    spot = run(Walk(SIZE), ["up"], 1)
    assert spot["x"] == 0 and spot["knee_r"] + spot["knee_l"] > 0.5
    both, right = run(Walk(SIZE), ["space"], 1), run(Walk(SIZE), ["a"], 1)
    assert both["raise_l"] > 2 < both["raise_r"] and right["raise_l"] < 0.3 < 2 < right["raise_r"]
    driver = Walk(SIZE)
    run(driver, ["a", "F13"], 1)
    assert run(driver, [], 2, start=1)["raise_r"] < 0.3
    assert run(driver, [], 1, start=-5)["raise_r"] < 0.3  # the stream began anew: time may go back


def test_a_walk_is_drawn_in_one_go():
    driver = Walk(SIZE)
    samples = [driver.sample(t / 12) for t in range(3)]
    assert driver.draw(samples).shape == (3, *SIZE, 3) and driver.draw(samples).any()


def test_a_film_plays_at_its_own_speed_again_and_again(tmp_path):
    frames = np.repeat(np.arange(5, dtype=np.uint8) * 50, 3 * SIZE[0] * SIZE[1]).reshape(5, *SIZE, 3)
    write_video(tmp_path / "poses.mkv", frames, fps=10, lossless=True)
    film = Film(tmp_path / "poses.mkv", SIZE)
    seen = [int(film.draw([film.sample(t)])[0, 0, 0, 0]) // 50 for t in (0.0, 0.05, 0.11, 0.42, 0.55, 0.95, 0.0, 0.21)]
    assert seen == [0, 0, 1, 4, 0, 4, 0, 2]
    film.close()


def test_a_file_that_is_no_film_is_refused(tmp_path):
    (tmp_path / "poses.mp4").write_bytes(b"nothing")
    for name in ("poses.mp4", "missing.mp4"):
        with pytest.raises(VideoError, match=name):
            Film(tmp_path / name, SIZE)


def jpeg(value):
    data = BytesIO()
    Image.fromarray(np.full((60, 80, 3), value, np.uint8)).save(data, "jpeg")
    return data.getvalue()


def test_a_camera_shows_the_newest_picture_and_keeps_the_last_pose():
    found = [None, Skeleton(SIZE).points]
    camera = Camera(SIZE, lambda picture: found.pop(0))
    standing = camera.draw([camera.sample(0.0)])[0]
    assert standing.any() and camera.received == 0
    camera.put(jpeg(10))
    camera.put(jpeg(200))
    nobody = camera.draw([camera.sample(0.1)])[0]
    assert np.array_equal(nobody, standing) and camera.view.max() >= 99  # half as bright, under the skeleton
    assert camera.sample(0.2) is None  # every picture is used once
    camera.put(jpeg(10))
    assert np.array_equal(camera.draw([camera.sample(0.3)])[0], pose.draw(Skeleton(SIZE).points, SIZE).numpy())
    assert camera.received == 3


def test_the_gallery_holds_different_characters_that_training_never_saw():
    pictures = gallery(SIZE, 3)
    assert len({picture.tobytes() for picture in pictures}) == 3 and pictures[0].shape == (*SIZE, 3)
    clip = StudioClips("test", count=1, frames=1, size=SIZE, facing=True)[0]
    assert np.array_equal(reference(SIZE, 0), clip.frames[0]) and np.array_equal(pictures[0], reference(SIZE, 0))
