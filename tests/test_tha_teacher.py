"""The five teachers of Talking Head Anime 4 against what the published code computes, and their files."""

import pytest
import torch
import torch.nn.functional as F
from golden.fill_rule import parameter, uniform
from goldens import golden, worst

from rainlab.baselines import tha_teacher as tha

INPUTS = {  # name -> (planes, size) of what each network is given, as the goldens name it
    "eyebrow_decomposer": {"ed": (4, 128)},
    "eyebrow_morphing_combiner": {"bg": (4, 128), "eb": (4, 128)},
    "face_morpher": {"face": (4, 192)},
    "body_morpher": {"body": (4, 256)},
    "upscaler": {"rest": (4, 512), "coarse": (4, 512), "grid": (2, 512)},
}
POSES = {"eyebrow_morphing_combiner": tha.BROWS, "face_morpher": tha.FACE} | dict.fromkeys(
    ("body_morpher", "upscaler"), tha.TURN
)
SMALL, LARGE = tha.NETWORKS[:3], tha.NETWORKS[3:]  # the large ones take seconds, and run in the whole anyway


@torch.no_grad()
def filled(network, prefix):
    """With the weights that the goldens were computed with."""
    for key, target in network.named_parameters():
        target.copy_(parameter(f"{prefix}/{key}", tuple(target.shape)))
        if "grid_change" in key:
            target.mul_(0.02)
        if key.startswith("body.last.2"):
            target[4:6] *= 0.05
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def teacher():
    with torch.device("meta"):
        made = tha.Teacher()
    made = made.to_empty(device="cpu")
    for name in tha.NETWORKS:
        filled(getattr(made, name), f"tha4/teacher/{name}")
    return made


def given(name, planes, size):
    low = torch.from_numpy(uniform(f"tha4/t/{name}", planes * 64)).float().reshape(1, planes, 8, 8)
    return F.interpolate(low, size=(size, size), mode="bilinear") * (0.02 if name == "grid" else 1)


def pose():
    return golden("tha4_students")["in/poses"][1:2]


def apart(ours, expected):
    return worst(ours[0, :, :: ours.shape[-1] // 16, :: ours.shape[-1] // 16], expected)


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_a_teacher_draws_what_the_published_code_draws(teacher, name):
    pictures = [given(which, *shape) for which, shape in INPUTS[name].items()]
    told = [pose()[:, POSES[name]]] if name in POSES else []
    for number, made in enumerate(getattr(teacher, name)(*pictures, *told)):
        assert apart(made, golden("tha4_teacher")[f"teacher/{name}/{number}"]) < 1e-4, number


def test_five_teachers_one_after_the_other(teacher):
    posed = teacher(given("full", 4, 512), pose())
    flat = [*posed.upscaled, posed.with_face, *posed.body, *posed.face, *posed.brows, *posed.layers]
    assert len(flat) == 33
    for number, made in enumerate(flat):
        bound = 4e-3 if made is posed.upscaled.warped else 1.2e-3  # a grid's rounding, times the slope of noise
        assert apart(made, golden("tha4_teacher")[f"teacher/pipeline/{number:02}"]) < bound, number


def test_networks_have_as_many_parameters_as_published():
    with torch.device("meta"):
        made = tha.Teacher()
    counts = [sum(p.numel() for p in getattr(made, name).parameters()) for name in tha.NETWORKS]
    assert counts[:4] == [31_479_434, 31_535_878, 31_605_002, 34_682_119]


def test_what_is_no_teacher_is_refused(tmp_path, monkeypatch):
    small = {name: torch.nn.Linear(2, 2 + i) for i, name in enumerate(tha.NETWORKS)}

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, network in small.items():
                setattr(self, name, torch.nn.Linear(2, network.out_features))

    monkeypatch.setattr(tha, "Teacher", Small)
    for name, network in small.items():
        torch.save(network.state_dict(), tmp_path / f"{name}.pt")
    loaded = tha.load(tmp_path)
    assert all(torch.equal(getattr(loaded, name).weight, network.weight) for name, network in small.items())
    torch.save(small["upscaler"].state_dict(), tmp_path / "face_morpher.pt")
    with pytest.raises(ValueError, match="got other weights than those of face_morpher, bias differs"):
        tha.load(tmp_path)
    (tmp_path / "upscaler.pt").unlink()
    torch.save(small["face_morpher"].state_dict(), tmp_path / "face_morpher.pt")
    with pytest.raises(FileNotFoundError, match=r"upscaler.pt is not there; .*data/tha4"):
        tha.load(tmp_path)


def test_bad_shapes_are_refused():
    with torch.device("meta"):
        made, picture = tha.Teacher(), torch.zeros(1, 4, 256, 256)
    with pytest.raises(ValueError, match=r"got \(1, 4, 256, 256\) and \(1, 45\), expected \(n, 4, 512, 512\)"):
        made(picture, torch.zeros(1, 45))
