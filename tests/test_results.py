"""What the repository publishes: the README's numbers are those of the committed runs, and they bear out its claims."""

import hashlib
import re
from pathlib import Path

import pytest

from rainlab import runs
from rainlab.config import make_preset, override
from rainlab.measure import evaluate, tables
from rainlab.training import stages, weights

TINY = make_preset("tiny")
README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def test_every_stage_and_variant_is_published_and_shipped():
    for stage in stages.STAGES:
        assert stages.recorded(TINY, stage).path.parent == runs.published()
        assert weights.weights_file(stages.run_id(TINY, stage)).parent == weights.SHIPPED
    for change in evaluate.ABLATIONS.values():
        assert stages.recorded(override(TINY, change), "distill3d")


def test_every_shipped_file_has_its_checksum():
    lines = (weights.SHIPPED / weights.SUMS).read_text("utf-8").splitlines()
    shipped = sorted(weights.SHIPPED.glob("*.safetensors"))
    assert sorted(lines, key=lambda line: line[66:]) == [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in shipped
    ]


def test_readme_and_results_show_the_published_numbers():
    block = README.partition("<!-- results -->")[2].partition("<!-- /results -->")[0]
    assert block.strip() == tables.readme(TINY).strip(), "run `doit publish`"
    page = (Path(__file__).parents[1] / "figures" / "RESULTS.md").read_text("utf-8")
    assert page.strip() == tables.results(TINY).strip(), "run `doit publish`"


@pytest.mark.parametrize(
    ("metric", "other", "least"), [("psnr_fg", "wrong", 2.0), ("psnr_fg", "copy", 0.0), ("ssim_fg", "copy", 0.0)]
)
def test_the_right_reference_helps_and_copying_does_not_do(metric, other, least):
    difference = evaluate.compare(TINY).value(metric, a="rain", b=other)
    assert difference["value"] > least and difference["ci_low"] > 0


def test_motion_modules_lower_the_held_out_loss():
    gain = stages.recorded(TINY, "stage2").value("v_loss_gain")
    assert gain["ci_low"] > 0


def test_all_figures_and_tables_of_the_paper_are_accounted_for():
    rows = [line for line in README.splitlines() if line.startswith(("| Figure", "| Table"))]
    named = {"Figure": set(), "Table": set()}
    for line in rows:  # "Figures 7 and 8, 26 and 68 facial landmarks": what stands before the first comma
        kind, *numbers = re.findall(r"Figure|Table|\d+", line.split("|")[1].partition(",")[0])
        named[kind] |= set(map(int, numbers))
    assert named == {"Figure": set(range(1, 11)), "Table": {1, 2, 3}}
    assert all(line.split("|")[3].strip() for line in rows)
