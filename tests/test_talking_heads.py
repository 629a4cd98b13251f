"""Table 8 on drawn faces: all systems see the same, and are measured where all of them paint."""

from functools import partial
from types import SimpleNamespace

import micro
import numpy as np
import pytest
from test_rotators import MICRO as ROTATOR
from test_students import MICRO as STUDENT

from rainlab import runs
from rainlab.baselines import animate_anyone
from rainlab.measure import metrics, morphing, reported, rotators, students, talking_heads
from rainlab.training import stages

CONFIG = micro.micro(data__source="faces", data__height=32, data__width=32)
GIVEN = (CONFIG, STUDENT, ROTATOR)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAINLAB_RUNS", str(tmp_path_factory.mktemp("heads")))
        patch.setattr(stages, "trained", lambda *given: micro.model(CONFIG))
        patch.setattr(stages, "finished", lambda *given, **options: None)
        patch.setattr(talking_heads, "SIZE", (16, 16))
        patch.setattr(animate_anyone, "animate", partial(animate_anyone.animate, steps=2))
        yield


def test_every_system_makes_the_same_moments():
    with pytest.raises(FileNotFoundError, match="no finished run student"):
        talking_heads.films(*GIVEN, 1, 8)
    made, mask, inside = talking_heads.films(*GIVEN, 1, 8, record=True)
    assert [*made] == [*talking_heads.METHODS] and mask.shape == (8, 32, 32) and 0.1 < mask.mean() < 0.9
    assert 0.02 < inside.mean() < mask.mean() and not (inside & ~mask).any()
    alone = talking_heads.films(*GIVEN, 1, 8, (0,)).made["THA3"][0]
    assert np.array_equal(alone, made["THA3"][0][:1])
    truth = morphing.driven(CONFIG, [1], 8, micro.model(CONFIG), ways=[])[1]["truth"][0]
    for method, (frames, theirs) in made.items():
        if method in rotators.DESIGNS:
            assert frames.shape == (2, 8, 32, 32, 3) and len({each.tobytes() for each in frames}) == 2
            frames = frames[0]
        assert frames.shape == theirs.shape == (8, 32, 32, 3) and frames.dtype == np.uint8
        if method not in ("student", *rotators.DESIGNS):
            assert np.array_equal(theirs, truth)
        else:  # the same on white
            assert np.abs(theirs.astype(int) - truth)[mask].mean() < 2 and not np.array_equal(theirs, truth)
    assert np.array_equal(made["copy"][0][5], truth[0])


def test_the_comparison_is_recorded_and_shown():
    with pytest.raises(FileNotFoundError, match="nothing recorded"):
        talking_heads.compare(*GIVEN, (0, 1), 8)
    run = talking_heads.compare(*GIVEN, (0, 1), 8, record=True)
    assert talking_heads.compare(*GIVEN, (0, 1), 8).id == run.id
    rows = {(row["method"], row["metric"]): row for row in run.metrics() if "character" not in row}
    assert rows.keys() == {(m, n) for m in talking_heads.METHODS for n in talking_heads.MEASURES}
    assert all(row["n"] == 2 and np.isfinite(row["value"]) and row["ci_low"] is None for row in rows.values())
    for (method, name), row in rows.items():
        each = [run.value(name, method=method, character=number)["value"] for number in (0, 1)]
        assert row["value"] == pytest.approx(np.mean(each))
    assert talking_heads.compare(*GIVEN, (0, 1), 8, record=True).metrics() == run.metrics()
    kept = talking_heads.pictures(run)
    assert [*kept] == ["truth", *talking_heads.METHODS]
    assert {x.shape for x in kept.values()} == {(talking_heads.MOMENTS, 16, 16, 3)}
    alone = talking_heads.compare(*GIVEN, (0,), 8, record=True)
    made, mask, _ = talking_heads.films(*GIVEN, 0, 8)
    for method, row in {"truth": made["copy"][1], "rain": made["rain"][0], "THA3": made["THA3"][0][0]}.items():
        small = talking_heads._small(row[None])[0].numpy()  # eight moments are all of them
        assert np.abs(255 * small - kept[method]).max() < 1
    mask = metrics.smaller(mask[None, 1:], (16, 16))  # without the frame that is given
    for method in ("copy", "rain", "student"):
        ours, theirs = (talking_heads._small(x[None, 1:]) for x in made[method])
        by_hand = metrics.psnr(ours, theirs, mask)[0]
        assert alone.value("psnr_fg", method=method, character=0)["value"] == pytest.approx(by_hand, rel=1e-5)
        ours, theirs = (x.masked_fill(~mask[..., None], 1.0) for x in (ours, theirs))  # backdrops don't count
        by_hand = metrics.ssim(ours, theirs, mask)[0]
        assert alone.value("ssim_fg", method=method, character=0)["value"] == pytest.approx(by_hand, rel=1e-5)
    theirs = talking_heads._small(made["THA3"][1][None, 1:])
    by_hand = [metrics.psnr(talking_heads._small(x[None, 1:]), theirs, mask)[0] for x in made["THA3"][0]]
    assert alone.value("psnr_fg", method="THA3", character=0)["value"] == pytest.approx(np.mean(by_hand), rel=1e-5)
    table = talking_heads.table8(run)
    assert [*table["method"]] == [*reported.THA4["table8"], *talking_heads.METHODS.values()]
    assert table.set_index(["source", "method"]).loc[("measured here", "RAIN"), "n"] == "2"
    assert table.loc[0, ["PSNR ↑", "LPIPS ↓", "PSNR fg ↑"]].tolist() == ["25.344", "0.0422", "–"]
    value = run.value("psnr_fg", method="rain", character=1)["value"]
    assert table.set_index("method").loc["RAIN", "character 1"] == f"{value:.2f}"


def test_tables_of_students_and_designs(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "published", lambda: tmp_path)  # what is recorded of others is not shown
    found = {f"character {n}": students.student(n, STUDENT, True) for n in (0, 1)}
    table = talking_heads.table_of_students("table4", found)
    beaten = [f"character {n}: {what}" for n in (0, 1) for what in ("nearest lesson", "at rest")]
    assert [*table["method"]] == ["top", "middle", "bottom", *found, *beaten]
    value = found["character 1"].value("psnr", method="student")["value"]
    assert table.loc[4, "PSNR ↑"].startswith(f"{value:.2f} [")
    table = talking_heads.table_of_students("table6", {"Vanilla SIREN": found["character 0"]})
    assert table.loc[0, ["PSNR ↑", "SSIM ↑"]].tolist() == ["38.259", "–"]
    compared, _ = students.compare("architectures", 0, STUDENT, record=True)
    table = talking_heads.differences(compared)
    assert [*table["method"]] == [f"{name} − Section 4.1" for name in students.ARCHITECTURES[1:]]
    row = compared.value("psnr_fg_change", student="Vanilla SIREN")
    assert table.loc[1, "PSNR fg ↑"].startswith(f"{row['value']:.2f} [") and table.loc[1, "n"] == str(STUDENT.tests)
    shown = talking_heads.recorded(CONFIG, STUDENT)
    assert {title.partition(":")[0] for title in shown} == {"Table 4", "Table 6"}
    assert shown["Table 6: paired differences, n poses"].equals(talking_heads.differences(compared))
    behind = {run.id for run in talking_heads.behind(CONFIG, STUDENT)}
    assert behind == {compared.id, *(run.id for run in found.values()), *compared.inputs.values()}
    designs = rotators.compare((0,), ROTATOR, record=True)
    table = talking_heads.table2(designs)
    assert [*table["method"]] == [*rotators.DESIGNS, *rotators.DESIGNS, "not turned"]
    timed = SimpleNamespace(config={"threads": 2}, metrics=lambda: [
        {"metric": "frames_per_second", "contender": "here", "value": 8.0, "n": 5},
        {"metric": "speed", "contender": "here", "value": 9.0, "n": 5},
    ])  # fmt: skip
    table = talking_heads.table_of_speed(timed)
    assert [*table["method"]] == [*reported.THA4_SPEED, "here"] and table.loc[2, "RTX A6000"] == "12.523"
    assert table.loc[3, ["CPU, 2 threads", "RTX A6000", "n"]].tolist() == ["125", "–", "5"]
