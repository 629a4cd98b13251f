"""Clips from the studio and from manifests: one interface, the same content, clear errors."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rainlab.data.clips import (
    Clip,
    Entry,
    ManifestClips,
    StudioClips,
    VideoError,
    read_manifest,
    read_video,
    write_clip,
    write_manifest,
    write_studio,
    write_video,
)
from rainlab.data.studio import body

SIZE, FRAMES = (64, 48), 10
ENTRY = Entry("videos/a.mp4", 0, 20, (64, 48), 12.0, "conditions/a.mp4", None, "train", "CC-BY-4.0")


@pytest.fixture(scope="module")
def studio():
    return StudioClips("train", 2, FRAMES, SIZE)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """The studio's clips as files."""
    return write_studio(tmp_path_factory.mktemp("studio"), "train", 2, FRAMES, SIZE)


@pytest.fixture
def changed(manifest, tmp_path):
    """A function that writes a manifest of the first entry with changes, beside copies of all files."""
    for source in manifest.parent.rglob("*.mp4"):
        copy = tmp_path / source.relative_to(manifest.parent)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(source.read_bytes())
    entry = json.loads(manifest.read_text().splitlines()[0])
    return lambda **changes: write_manifest(tmp_path / "manifest.jsonl", [Entry(**entry | changes)])


def psnr(x, y):
    return 10 * np.log10(255**2 / np.mean((x.astype(float) - y) ** 2))


# ---- the studio ----


def test_studio_clips_hold_everything_the_studio_knows(studio):
    clip = studio[0]
    height, width = SIZE
    shapes = {
        "frames": ((FRAMES, height, width, 3), np.uint8),
        "condition": ((FRAMES, height, width, 3), np.uint8),
        "mask": ((FRAMES, height, width), np.bool_),
    }
    assert {name: (getattr(clip, name).shape, getattr(clip, name).dtype) for name in shapes} == shapes
    assert (clip.name, clip.fps, clip.split, clip.licence) == ("train_00000", 12.0, "train", "Apache-2.0")


def test_the_condition_shows_the_pose_of_its_frame(studio):
    """Every condition has colour at the seen keypoints of its frame, and black far from the character."""
    clip, seeds = studio[1], body.split_seeds("train", 1, start=1)
    points = body.render(seeds, seeds, FRAMES, SIZE, clip.fps).keypoints[0].numpy()
    for condition, keypoints in zip(clip.condition, points, strict=True):
        x, y = keypoints[keypoints[:, 2] > 0, :2].round().astype(int).T
        inside = (x >= 0) & (x < SIZE[1]) & (y >= 0) & (y < SIZE[0])
        assert (condition[y[inside], x[inside]].max(-1) > 60).all()
    assert (clip.condition.max(-1) > 0).mean() < 0.5


def test_studio_clips_are_a_sequence_and_start_counts_characters(studio):
    assert isinstance(studio, Sequence) and len(studio) == 2
    assert np.array_equal(studio[-1].frames, studio[1].frames)
    assert not np.array_equal(studio[0].frames, studio[1].frames)
    assert np.array_equal(StudioClips("train", 1, FRAMES, SIZE, start=1)[0].frames, studio[1].frames)
    assert [clip.name for clip in studio] == [studio.name(0), studio.name(1)]  # iteration ends at IndexError
    with pytest.raises(IndexError):
        studio[2]
    assert studio[5:] == []


def test_a_slice_is_rendered_together_and_gives_the_same_clips():
    studio = StudioClips("val", 11, 2, (32, 24))  # more than are rendered in one call
    for clip, alone in zip(studio[1:], (studio[i] for i in range(1, 11)), strict=True):
        for part in ("frames", "condition", "mask"):
            assert np.array_equal(getattr(clip, part), getattr(alone, part)), part
        assert clip.name == alone.name


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "valid"}, "got 'valid', expected one of train, val, test"),
        ({"frames": 0}, "frames: got 0, expected at least 1"),
        ({"size": (64, 0)}, r"size: got \(64, 0\), expected \(height, width\)"),
        ({"size": (64,)}, "size: got"),
        ({"fps": 0.0}, "fps: got 0.0"),
        ({"count": 0}, "got count 0"),
        ({"start": -1}, "start -1"),
    ],
)
def test_senseless_studio_arguments_are_refused_when_constructing(arguments, message):
    with pytest.raises(ValueError, match=message):
        StudioClips(**{"split": "train", "count": 1} | arguments)


def test_fingerprints_tell_apart_what_differs(manifest, changed):
    prints = [
        StudioClips("train", 2, FRAMES, SIZE),
        StudioClips("test", 2, FRAMES, SIZE),
        StudioClips("train", 2, FRAMES, SIZE, start=2),
        StudioClips("train", 2, FRAMES, (32, 24)),
        StudioClips("train", 2, FRAMES, SIZE, facing=True),
        StudioClips("train", 2, FRAMES, SIZE, facing=True, pause=True),
        ManifestClips(manifest, "train", SIZE, FRAMES),
        ManifestClips(manifest, "train", SIZE, 5),
        ManifestClips(changed(stop=8), "train", SIZE, 5),
    ]
    texts = [json.dumps(clips.fingerprint(), sort_keys=True) for clips in prints]
    assert len(set(texts)) == len(texts)
    assert ManifestClips(manifest, "train", SIZE, FRAMES).fingerprint() == prints[6].fingerprint()


def test_a_manifest_s_fingerprint_changes_with_its_files_not_with_their_place(changed, manifest, tmp_path):
    there = ManifestClips(changed(), "train", SIZE, FRAMES)
    before = there.fingerprint()
    with open(tmp_path / there.entries[0].path, "ab") as file:
        file.write(b"more")
    assert there.fingerprint() != before
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    (moved / there.entries[0].path).write_bytes((manifest.parent / there.entries[0].path).read_bytes())
    assert ManifestClips(moved / "manifest.jsonl", "train", SIZE, FRAMES).fingerprint() == before


# ---- manifests ----


def test_files_and_studio_give_the_same_clips(studio, manifest):
    files = ManifestClips(manifest, "train", SIZE, FRAMES)
    assert isinstance(files, Sequence) and len(files) == len(studio)
    for read, made in zip(files, studio, strict=True):
        assert psnr(read.frames, made.frames) > 30
        assert np.array_equal(read.condition, made.condition) and np.array_equal(read.mask, made.mask)
        assert (read.fps, read.split, read.licence) == (made.fps, made.split, made.licence)
        assert read.name == f"{made.name}@0"


def test_entries_are_cut_into_windows_that_follow_each_other(studio, changed):
    clips = ManifestClips(changed(start=1), "train", SIZE, 4)
    assert [clip.name for clip in clips] == ["train_00000@1", "train_00000@5"]  # frame 9 is left over
    assert np.array_equal(clips[1].condition, studio[0].condition[5:9])
    assert np.array_equal(clips[1].mask, studio[0].mask[5:9])
    assert psnr(clips[1].frames, studio[0].frames[5:9]) > 30


def test_clips_are_resized_or_cropped_all_parts_alike(studio, manifest):
    small = ManifestClips(manifest, "train", (32, 24), FRAMES)[0]
    assert small.frames.shape == small.condition.shape == (FRAMES, 32, 24, 3) and small.mask.shape == (FRAMES, 32, 24)
    middle = ManifestClips(manifest, "train", (48, 48), FRAMES, fit="crop")[0]
    assert np.array_equal(middle.mask, studio[0].mask[:, 8:56])
    assert np.array_equal(middle.condition, studio[0].condition[:, 8:56])
    with pytest.raises(VideoError, match=r"train_00000.mp4: got 64×48 pixels, expected the shape of 48×48"):
        ManifestClips(manifest, "train", (48, 48), FRAMES)


def test_a_clip_gives_the_same_files_every_time(tmp_path):
    """Whatever is left in the memory that the encoder gets: on AVX-512, x264's macroblock tree reads some of it."""
    clip, garbage = StudioClips("train", 1, 12, (256, 192), start=1)[0], np.random.default_rng(0)
    written = set()
    for _ in range(12):
        left = [garbage.bytes(size) for size in garbage.integers(1000, 100_000, 40)]
        entry = write_clip(tmp_path, clip)
        written.add(tuple((tmp_path / file).read_bytes() for file in (entry.path, entry.condition, entry.mask)))
        del left
    assert len(written) == 1


def test_clips_without_masks(studio, tmp_path):
    bare = Clip(studio[0].frames, studio[0].condition, "bare", 25.0, "val", "CC0-1.0")
    path = write_manifest(tmp_path / "manifest.jsonl", [write_clip(tmp_path, bare)])
    assert not (tmp_path / "masks").exists()
    clip = ManifestClips(path, "val", SIZE, FRAMES)[0]
    assert clip.mask is None and (clip.fps, clip.licence) == (25.0, "CC0-1.0")


def test_a_manifest_is_checked_when_constructing(manifest, changed):
    with pytest.raises(VideoError, match="train_00000.mp4: got 10 frames, expected at least 11; ask for fewer"):
        ManifestClips(manifest, "train", SIZE, 11)
    with pytest.raises(ValueError, match=r"no clip of split 'test', expected one of \['train'\]"):
        ManifestClips(manifest, "test", SIZE, FRAMES)
    with pytest.raises(ValueError, match="frames: got 0"):
        ManifestClips(manifest, "train", SIZE, 0)
    with pytest.raises(ValueError, match="size: got"):
        ManifestClips(manifest, "train", (0, 48), FRAMES)
    with pytest.raises(VideoError, match="lost.mp4: got no such file"):
        ManifestClips(changed(condition="conditions/lost.mp4"), "train", SIZE, FRAMES)
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl: no such manifest; write it"):
        ManifestClips(manifest.parent / "nowhere.jsonl", "train", SIZE, FRAMES)


def test_files_that_disagree_are_named_when_read(changed, tmp_path, studio):
    with pytest.raises(VideoError, match=r"got \(64, 48\) pixels, expected \(32, 24\) as the manifest has it"):
        ManifestClips(changed(size=(32, 24)), "train", SIZE, FRAMES)[0]
    with pytest.raises(VideoError, match="train_00000.mp4: got 10 frames, expected at least 16"):
        ManifestClips(changed(stop=16), "train", SIZE, 16)[0]
    path = tmp_path / "conditions" / "train_00000.mp4"
    write_video(path, studio[0].condition[:-1], lossless=True)
    with pytest.raises(VideoError, match=r"conditions.train_00000.mp4: got 9 frames, expected 10 as in videos"):
        ManifestClips(changed(), "train", SIZE, 5)[0]
    write_video(path, studio[0].condition[:, :-2], lossless=True)
    with pytest.raises(VideoError, match=r"got \(62, 48\) pixels, expected \(64, 48\) as in videos"):
        ManifestClips(changed(), "train", SIZE, 5)[0]
    path.write_bytes(b"")
    with pytest.raises(VideoError, match="got an empty file"):
        ManifestClips(changed(), "train", SIZE, 5)[0]


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda name: not name.startswith("/"))


@given(
    st.lists(
        st.builds(
            lambda start, length, **rest: Entry(start=start, stop=start + length, **rest),
            start=st.integers(0, 10**6),
            length=st.integers(1, 10**6),
            path=names,
            condition=names,
            mask=st.none() | names,
            size=st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
            fps=st.floats(0.01, 1000),
            split=st.sampled_from(["train", "val", "test"]),
            licence=st.text(st.characters(exclude_categories=["Cs"])),
        ),
        max_size=4,
    )
)
def test_a_manifest_comes_back_as_it_was_written(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("manifest") / "manifest.jsonl"
    assert read_manifest(write_manifest(path, entries)) == entries


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"split": "dev"}, "split: got 'dev'"),
        ({"stop": 0}, "frames: got 0"),
        ({"start": -1}, "start: got -1"),
        ({"start": 0.5}, "whole numbers"),
        ({"size": [64]}, r"size: got \(64,\)"),
        ({"fps": 0}, "fps: got 0"),
        ({"path": "/data/a.mp4"}, "got '/data/a.mp4', expected one relative to the manifest's folder"),
        ({"condition": ""}, "got '', expected one relative"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, changes, message):
    path = write_manifest(tmp_path / "manifest.jsonl", [ENTRY])
    line = json.loads(path.read_text())
    path.write_text(path.read_text() + json.dumps(line | changes) + "\n")
    with pytest.raises(ValueError, match=rf"manifest.jsonl, line 2: .*{message}.*; expected an object with the keys"):
        read_manifest(path)


@pytest.mark.parametrize("line", ["{", "[]", "12", "{}", ""])
def test_lines_that_are_no_entry(tmp_path, line):
    (tmp_path / "manifest.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match="line 1: .*expected an object"):
        read_manifest(tmp_path / "manifest.jsonl")


def test_masks_and_conditions_are_written_without_loss_and_parts_can_be_chosen(studio, tmp_path):
    entry = write_clip(tmp_path, studio[0], parts=["masks"])
    assert [path.parent.name for path in tmp_path.rglob("*.mp4")] == ["masks"]
    assert (entry.path, entry.mask) == ("videos/train_00000.mp4", "masks/train_00000.mp4")
    frames, _ = read_video(tmp_path / entry.mask)
    assert set(np.unique(frames)) == {0, 255}
