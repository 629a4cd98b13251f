"""The timing of data preparation times what it says; how long that takes is nobody's business here."""

import pytest

from data_prep import panda70m, throughput, verbs
from rainlab import runs
from rainlab.data.video import probe


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(runs, "published", lambda: tmp_path / "published")
    for name, value in {"RAW": (96, 128), "FPS": 8, "CLIPS": 2, "SECONDS": 1, "ROUNDS": 2}.items():
        monkeypatch.setattr(throughput, name, value)


def test_raw_videos_are_what_the_table_says(tmp_path):
    table = throughput.write_raw(tmp_path)
    about = probe(tmp_path / "video1.mp4")
    assert (about["height"], about["width"], about["fps"], about["frames"]) == (96, 128, 8, 8)
    there = {f"video{i}": tmp_path / f"video{i}.mp4" for i in range(2)}
    assert list(panda70m.listed(table, there)) == [("video0", 0.0, 1.0), ("video1", 0.0, 1.0)]


def test_every_way_gets_through_all_frames(monkeypatch):
    seen, real = [], verbs.check

    def check(*given, **options):
        seen.append(real(*given, **options))
        return seen[-1]

    monkeypatch.setattr(verbs, "check", check)
    with pytest.raises(FileNotFoundError, match=r"`python -m data_prep.throughput`"):
        throughput.throughput()
    run = throughput.throughput(size=(32, 32), record=True)
    assert throughput.throughput().id == run.id
    rates = {row["contender"]: row for row in run.metrics() if row["metric"] == "frames_per_second"}
    assert [*rates] == ["cut, 1 thread", "cut, 2 threads", "check, 1 thread", "check, 2 threads"]
    assert all(row["n"] == 2 and 0 < row["ci_low"] <= row["value"] <= row["ci_high"] for row in rates.values())
    for contender, row in rates.items():
        hours = run.value("hours", contender=contender)
        assert hours["value"] == pytest.approx(50_000 * 8.5 * 8 / row["value"] / 3600)
        assert hours["ci_low"] <= hours["value"] <= hours["ci_high"]
    assert all(row["ok"] and row["frames"] == 8 for rows in seen for row in rows if row["part"] == "videos")


def test_clips_that_are_not_cut_are_not_counted(monkeypatch):
    monkeypatch.setattr(panda70m, "cut", lambda *given, **options: {"written": 1, "broken": 1})
    with pytest.raises(RuntimeError, match="'broken': 1.*expected 2 clips written"):
        throughput.throughput(record=True)
