"""Preparing data: work resumes, what is broken is dropped and named, and the manifest reads back as clips."""

import os

import numpy as np
import pytest

from data_prep import studio, verbs
from rainlab.data.clips import ManifestClips, StudioClips, read_manifest, read_video, write_video

SIZE = {"height": 64, "width": 48}


def prepare(folder, clips=3, frames=6, split="train"):
    return studio.cut(folder, split, clips, frames, **SIZE), studio.annotate(folder)


def written(folder):
    """Path -> the moment it was written, of all videos."""
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*.mp4")}


@pytest.fixture
def folder(tmp_path):
    prepare(tmp_path)
    return tmp_path


def test_cut_and_annotate_make_the_studio_s_clips(folder):
    path = verbs.manifest(folder, verbs.check(folder), studio.split_of, "CC0-1.0")
    clips = ManifestClips(path, "train", (64, 48), 6)
    for read, made in zip(clips, StudioClips("train", 3, 6, (64, 48)), strict=True):
        assert np.abs(read.frames.astype(int) - made.frames).mean() < 6
        assert np.array_equal(read.condition, made.condition) and np.array_equal(read.mask, made.mask)
        assert read.licence == "CC0-1.0"


def test_good_files_are_kept_and_only_what_is_missing_or_broken_is_made(folder):
    before = written(folder)
    assert prepare(folder) == ({"kept": 3}, {"kept": 3}) and written(folder) == before
    (folder / "videos/train_00000.mp4").write_bytes(b"torn")
    (folder / "masks/train_00001.mp4").unlink()
    (folder / "conditions/train_00002.mp4").write_bytes(b"")
    assert studio.annotate(folder) == {"skipped": 1, "kept": 1, "written": 1}
    assert studio.cut(folder, clips=3, frames=6, **SIZE) == {"written": 2, "kept": 1}
    assert studio.annotate(folder) == {"kept": 3}
    assert all(row["ok"] for row in verbs.check(folder))
    changed = {path for path, moment in written(folder).items() if before.get(path) != moment}
    assert changed == {"videos/train_00000.mp4", "masks/train_00001.mp4", "conditions/train_00002.mp4"}


def test_other_numbers_make_the_clips_again(folder):
    assert prepare(folder, frames=8) == ({"written": 3}, {"written": 3})
    assert studio.cut(folder, clips=4, frames=8, fps=24, **SIZE) == {"written": 4}
    assert {row["frames"] for row in verbs.check(folder)[:3]} == {8}


def test_work_on_two_threads_gives_the_same_files(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("threads")
    studio.cut(other, clips=3, frames=6, workers=2, **SIZE)
    studio.annotate(other, workers=2)
    assert written(other).keys() == written(folder).keys()
    assert all((other / path).read_bytes() == (folder / path).read_bytes() for path in written(folder))


def test_check_names_every_kind_of_fault(folder):
    frames, _ = read_video(folder / "videos/train_00000.mp4")
    prepare(folder, clips=7)
    (folder / "videos/train_00000.mp4").write_bytes((folder / "videos/train_00000.mp4").read_bytes()[:-900])
    (folder / "conditions/train_00001.mp4").unlink()
    write_video(folder / "conditions/train_00002.mp4", frames[:-1])
    write_video(folder / "masks/train_00003.mp4", frames[:, 2:])
    (folder / "masks/train_00004.mp4").write_bytes(b"")
    for part in ("videos", "conditions", "masks"):
        write_video(folder / part / "train_00005.mp4", frames[:3])
    (folder / "videos/.train_00009-ab.part.mp4").write_bytes(b"an interrupted write")
    rows = verbs.check(folder, least=4)
    assert len(rows) == 21 and [row["path"] for row in rows if row["ok"]].count("videos/train_00006.mp4") == 1
    faults = {row["path"]: row["reason"] for row in rows if not row["ok"]}
    assert faults.pop("videos/train_00000.mp4").startswith("got unreadable data")
    assert faults == {
        "conditions/train_00001.mp4": "got no such file, expected a video",
        "conditions/train_00002.mp4": "frames: got 5, expected 6",
        "masks/train_00003.mp4": "height: got 62, expected 64",
        "masks/train_00004.mp4": "got an empty file, expected a video",
        "videos/train_00005.mp4": "frames: got 3, expected at least 4",
    }
    path = verbs.manifest(folder, rows, studio.split_of, "CC0-1.0")
    assert [entry.path for entry in read_manifest(path)] == ["videos/train_00006.mp4"]
    assert verbs.report(rows).splitlines()[:7] == [
        "part          files     ok  dropped   frames",
        "videos            7      5        2       30",
        "conditions        7      5        2       27",
        "masks             7      5        2       27",
        "",
        "1 of 7 clips are complete",
        f"dropped videos/train_00000.mp4: {rows[0]['reason']}",
    ]


def test_check_decodes_to_the_end(folder):
    """Damage in the last frame, which no header shows."""
    path = folder / "conditions/train_00000.mp4"
    data = bytearray(path.read_bytes())
    end = data.find(b"moov") - 4  # the frames lie before the table of contents
    data[end - 60 : end] = bytes(60)
    path.write_bytes(data)
    (fault,) = [row for row in verbs.check(folder) if not row["ok"]]
    assert fault["path"] == "conditions/train_00000.mp4" and fault["reason"].startswith("got unreadable data")


def test_a_data_set_without_masks_is_complete(folder):
    for path in (folder / "masks").iterdir():
        path.unlink()
    rows = verbs.check(folder)
    assert len(rows) == 6 and all(row["ok"] for row in rows)
    path = verbs.manifest(folder, rows, studio.split_of, "CC0-1.0")
    assert [entry.mask for entry in read_manifest(path)] == [None] * 3


def test_nothing_to_check_and_nothing_left_are_errors(tmp_path):
    with pytest.raises(ValueError, match="got no mp4 file in videos, conditions, masks, expected clips; run cut first"):
        verbs.check(tmp_path)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "train_00000.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="got no complete clip"):
        verbs.manifest(tmp_path, verbs.check(tmp_path), studio.split_of, "CC0-1.0")
    assert not (tmp_path / "manifest.jsonl").exists()


def test_a_stranger_s_video_is_not_annotated(folder):
    os.rename(folder / "videos/train_00000.mp4", folder / "videos/holiday.mp4")
    with pytest.raises(ValueError, match="'holiday': got no studio clip's name, expected one like train_00012"):
        studio.annotate(folder)


def test_the_command_line_from_nothing_to_a_manifest(tmp_path, capsys):
    def call(*words):
        status = studio.main([words[0], "--folder", str(tmp_path), *words[1:]])
        return status, capsys.readouterr()

    size = ["--frames", "6", "--height", "64", "--width", "48"]
    assert call("cut", "--clips", "2", *size)[1].out == "cut: 2 written\n"
    status, shown = call("cut", "--clips", "1", "--split", "test", "--quiet", *size)
    assert shown == ("cut: 1 written\n", "")
    assert call("annotate", "--workers", "2")[1].out == "annotate: 3 written\n"
    assert call("check")[0] == 0
    (tmp_path / "masks/train_00001.mp4").unlink()
    status, shown = call("check", "--least", "6")
    assert status == 1 and "dropped masks/train_00001.mp4: got no such file" in shown.out
    assert "check: 100%" in shown.err
    status, shown = call("manifest", "--quiet")
    assert status == 0 and shown.out.endswith(
        "manifest.jsonl: test 1 clips, 6 frames, licence Apache-2.0\n"
        "manifest.jsonl: train 1 clips, 6 frames, licence Apache-2.0\n"
    )
    assert [entry.split for entry in read_manifest(tmp_path / "manifest.jsonl")] == ["test", "train"]


def test_the_command_line_helps_and_explains_errors(tmp_path, capsys):
    for words in (["--help"], ["cut", "--help"]):
        with pytest.raises(SystemExit) as end:
            studio.main(words)
        assert end.value.code == 0
        assert "python -m data_prep.studio cut --folder data/studio --split train" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        studio.main(["check", "--folder", str(tmp_path / "empty")])
    shown = capsys.readouterr().err
    assert end.value.code == 2 and "python -m data_prep.studio: error:" in shown and "run cut first" in shown
