"""What the repository publishes: the README's numbers are those of the committed runs, and they bear out its claims."""

import hashlib
import re
from pathlib import Path

import pytest

import rainlab
from rainlab import runs
from rainlab.config import make_preset, override
from rainlab.measure import evaluate, morphing, pages
from rainlab.method.checkpoint import save_model
from rainlab.training import stages, weights

SMALL, TINY = make_preset("small"), make_preset("tiny")  # of README, notebooks and tables; of Table 3
FACE, STREET = make_preset("face"), make_preset("street")  # of drawn faces; of streets in styles
README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


@pytest.mark.parametrize("preset", [SMALL, TINY], ids=lambda preset: preset.name)
def test_every_stage_is_published_and_shipped(preset):
    files = [weights.weights_file(stages.run_id(preset, stage)) for stage in stages.STAGES]
    assert {file.parent for file in files} == {weights.SHIPPED}
    assert all(stages.recorded(preset, stage).path.parent == runs.published() for stage in stages.STAGES)
    assert sum(file.stat().st_size for file in files) < 60e6


def test_faces_and_streets_stream_with_what_is_shipped():
    assert all(rainlab.load(name).denoising_unet.cfg.guidance_dim for name in ("face", "street"))
    made = [runs.get(path.stem) for path in weights.SHIPPED.glob("*.safetensors")]
    needed = {stages.run_id(preset, stage) for preset in (FACE, STREET) for stage in ("autoencoder", "distill3d")}
    assert {run.id for run in made} >= needed
    follows = morphing.following(FACE)
    eyes, mouth = (follows.value("opening_correlation", driven="calibrated", part=part) for part in ("eyes", "mouth"))
    assert eyes["ci_low"] > 0.8 and 0.5 < mouth["ci_low"] < mouth["ci_high"] < 0.8


def test_gaps_in_landmarks_cost_what_section_52_says():
    trainings = (FACE, morphing.with_gaps(FACE))
    plain, blind = (morphing.following(each, stage="stage1", inputs_from=FACE) for each in trainings)
    for part in ("eyes", "mouth"):
        lost, kept = (run.value("opening_correlation", driven="calibrated", part=part) for run in (blind, plain))
        assert lost["ci_high"] < kept["ci_low"]
    assert lost["ci_high"] < 0.25


def test_what_inference_needs_is_small(tmp_path):
    save_model(rainlab.load("small").half(), tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size < 30e6


def test_every_ablation_is_published():
    for change in evaluate.ABLATIONS.values():
        assert stages.recorded(override(TINY, change), "distill3d")


def test_every_shipped_file_has_its_checksum():
    lines = (weights.SHIPPED / weights.SUMS).read_text("utf-8").splitlines()
    shipped = sorted(weights.SHIPPED.glob("*.safetensors"))
    assert sorted(lines, key=lambda line: line[66:]) == [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in shipped
    ]


def test_readme_and_results_show_the_published_numbers(tmp_path):
    block = README.partition("<!-- results -->")[2].partition("<!-- /results -->")[0]
    assert block.strip() == pages.readme(SMALL).strip(), "run `doit publish`"
    pages.save_all(tmp_path, SMALL, TINY, [FACE, STREET])
    written = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    assert written.keys() == {"RESULTS.md", *(f"table{i}.{kind}" for i in (1, 2, 3) for kind in ("csv", "tex"))}
    committed = {name: (Path(__file__).parents[1] / "figures" / name).read_text("utf-8") for name in written}
    assert committed == written, "run `doit publish`"


def test_the_model_card_shows_the_published_numbers():
    block = (weights.SHIPPED / "README.md").read_text("utf-8").partition("<!-- numbers -->")[2]
    expected = "\n\n".join(map(pages.card, (SMALL, TINY, FACE, STREET)))
    assert block.partition("<!-- /numbers -->")[0].strip() == expected.strip(), "run `doit publish`"


@pytest.mark.parametrize(
    ("metric", "other", "least"), [("psnr_fg", "wrong", 2.0), ("psnr_fg", "copy", 0.0), ("ssim_fg", "copy", 0.0)]
)
@pytest.mark.parametrize("preset", [SMALL, TINY], ids=lambda preset: preset.name)
def test_the_right_reference_helps_and_copying_does_not_do(preset, metric, other, least):
    difference = evaluate.compare(preset).value(metric, a="rain", b=other)
    assert difference["value"] > least and difference["ci_low"] > 0


@pytest.mark.parametrize("preset", [SMALL, TINY], ids=lambda preset: preset.name)
def test_motion_modules_lower_the_held_out_loss(preset):
    gain = stages.recorded(preset, "stage2").value("v_loss_gain")
    assert gain["ci_low"] > 0


def test_all_figures_and_tables_of_the_paper_are_accounted_for():
    rows = [line for line in README.splitlines() if line.startswith(("| Figure", "| Table"))]
    named = {"Figure": set(), "Table": set()}
    for line in rows:
        for kind, numbers in re.findall(r"(Figure|Table)s? ([\d, ]+)", line.split("|")[1]):
            named[kind] |= set(map(int, re.findall(r"\d+", numbers)))
    assert named == {"Figure": set(range(1, 11)), "Table": {1, 2, 3}}
    assert all(line.split("|")[3].strip() for line in rows)
