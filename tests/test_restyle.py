"""SDEdit with a ControlNet through diffusers: the real pipeline, with small random networks in published form."""

import numpy as np
import pytest
from small_diffusers import write_pipeline

from rainlab.data.studio import body, scene
from rainlab.method import restyle

SIZE = (64, 64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def pipe(folders):
    return restyle.load(*folders)


@pytest.fixture(scope="module")
def street():
    clip = scene.render(body.split_seeds("test", 1), 1, SIZE, styles="plain")
    depth = np.uint8(clip.depth[0, 0].numpy() * 255)
    return clip.frames[0, 0].numpy(), depth[..., None].repeat(3, -1)


def test_a_picture_is_redrawn_by_words_depth_and_seed(pipe, street):
    picture, depth = street
    made = restyle.restyle(pipe, picture, depth, "a b", steps=4)
    assert made.shape == picture.shape and made.dtype == np.uint8 and (made != picture).any()
    np.testing.assert_array_equal(made, restyle.restyle(pipe, picture, depth, "a b", steps=4))
    others = {
        "words": restyle.restyle(pipe, picture, depth, "c c", steps=4),
        "depth": restyle.restyle(pipe, picture, 255 - depth, "a b", steps=4),
        "seed": restyle.restyle(pipe, picture, depth, "a b", steps=4, seed=1),
        "picture": restyle.restyle(pipe, 255 - picture, depth, "a b", steps=4),
    }
    for what, other in others.items():
        assert (other != made).any(), what


def test_less_strength_keeps_more_of_the_picture(pipe, street):
    """How much of the picture is in the result: what changes with it."""
    picture, depth = street
    depends = []
    for strength in (0.1, 1.0):
        made = (restyle.restyle(pipe, x, depth, "a", strength, steps=10) for x in (picture, 255 - picture))
        depends.append(np.abs(np.subtract(*(x.astype(int) for x in made))).mean())
    assert depends[0] > 2 * depends[1]


def test_what_is_missing_or_no_model_is_named(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="lllyasviel/control_v11f1p_sd15_depth"):
        restyle.load(folders[0], tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="lllyasviel/control_v11p_sd15_openpose"):
        restyle.load(folders[0], tmp_path / "nothing", kind="openpose")
    with pytest.raises(ValueError, match="kind: got 'canny', expected one of depth, openpose"):
        restyle.load(*folders, kind="canny")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected Stable Diffusion and a ControlNet with safetensors"):
        restyle.load(folders[0], tmp_path / "empty")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"picture": np.zeros((60, 64, 3), np.uint8), "depth": np.zeros((60, 64, 3), np.uint8)}, "got 60×64"),
        ({"depth": np.zeros((64, 64), np.uint8)}, "depth: got uint8"),
        ({"picture": np.zeros((64, 64, 3))}, "picture: got float64"),
        ({"strength": 0.0}, "expected 0 < strength <= 1"),
        ({"strength": 0.01, "steps": 4}, "one step at least"),
    ],
)
def test_bad_arguments(pipe, street, change, message):
    picture, depth = street
    with pytest.raises(ValueError, match=message):
        restyle.restyle(pipe, **({"picture": picture, "depth": depth, "style": "a"} | change))
