"""From raw videos to manifests: the three real data sets, on small videos that are written here."""

import json
import multiprocessing
import os
import pickle
import signal
import sys
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_prep import anime_faces, panda70m, raw, ubc_fashion, verbs
from rainlab import files
from rainlab.data import landmarks, pose
from rainlab.data.clips import ManifestClips, read_manifest, read_video, write_video
from rainlab.data.faces import StudioFaces
from rainlab.data.studio import body as bodies
from rainlab.data.studio import face
from rainlab.data.video import probe

FACES = {"least_seconds": 1, "most_seconds": 2, "least_side": 8, "rate": 10}
SMALL = (24, 16)


def movie(path, frames=6, size=(36, 30), fps=10.0, seed=0):
    """Noise that keeps still; on its left third a grey that rises from frame to frame."""
    pictures = np.random.default_rng(seed).integers(60, 200, (*size, 3), np.uint8)[None].repeat(frames, 0)
    pictures[:, :, :10] = (np.arange(frames) * 20 + 5)[:, None, None, None]
    write_video(path, pictures, fps)
    return path


def body(picture):
    """A stand-in for a pose detector: a standing body in the middle."""
    height, width = picture.shape[:2]
    points = np.tile([width / 2, height / 2, 1.0], (18, 1))
    points[:, 1] = np.linspace(2, height - 3, 18)
    return points


def moments(folder):
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*.mp4")}


def reasons(folder, **options):
    return {row["path"]: row["reason"] for row in verbs.check(folder, **options) if not row["ok"]}


@pytest.fixture
def fashion(tmp_path):
    """Raw videos of UBC-Fashion, as its own script lays them out, with the two lists; returns cut's arguments."""
    for number, name in enumerate(("train/91-3003CN5S", "train/A1P+0ZhMAiS", "train/B", "test/C")):
        movie(tmp_path / f"raw/{name}.mp4", seed=number)
    address = "https://m.media-amazon.com/images/I/{}.mp4\n"
    (tmp_path / "train.txt").write_text("".join(map(address.format, ("91-3003CN5S", "A1P+0ZhMAiS", "B"))))
    (tmp_path / "test.txt").write_text("\n" + address.format("C"))
    names = {"videos": "raw", "train_list": "train.txt", "test_list": "test.txt"}
    return {"folder": tmp_path / "out", "size": SMALL} | {key: tmp_path / name for key, name in names.items()}


def killed(work):
    """Do work in another process, which dies by SIGKILL when the third mp4 file is whole but not yet in its place."""

    def child():
        replace, done = os.replace, []

        def last(source, target):
            done.append(str(target).endswith(".mp4"))
            if sum(done) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        files.os = type("os", (), vars(os) | {"replace": staticmethod(last)})
        work()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_fashion_from_lists_to_clips(fashion):
    folder = fashion["folder"]
    assert ubc_fashion.cut(**fashion, workers=2) == {"written": 4}
    assert ubc_fashion.annotate(folder, body) == {"written": 4}
    path = verbs.manifest(folder, verbs.check(folder), verbs.split_of, ubc_fashion.LICENCE)
    assert [(entry.path, entry.split, entry.licence) for entry in read_manifest(path)] == [
        ("videos/test_C.mp4", "test", "CC BY-NC 4.0"),
        ("videos/train_91-3003CN5S.mp4", "train", "CC BY-NC 4.0"),
        ("videos/train_A1P+0ZhMAiS.mp4", "train", "CC BY-NC 4.0"),
        ("videos/train_B.mp4", "train", "CC BY-NC 4.0"),
    ]
    (clip,) = ManifestClips(path, "test", SMALL, 6)
    whole, _ = read_video(fashion["videos"] / "test/C.mp4", size=SMALL, fit="crop")
    assert np.abs(clip.frames.astype(int) - whole).mean() < 6  # the centre, resized: but for the coding the same
    assert np.array_equal(clip.condition[0], pose.draw(body(whole[0]), SMALL))


def test_a_kill_in_the_middle_costs_one_file(fashion):
    folder = fashion["folder"]
    killed(partial(ubc_fashion.cut, **fashion))
    before = moments(folder)
    assert len(before) == 3 and [path for path in before if path.endswith(".part.mp4")]  # two are done, one was not
    assert ubc_fashion.cut(**fashion) == {"kept": 2, "written": 2}
    killed(partial(ubc_fashion.annotate, folder, body))
    before |= moments(folder)
    assert ubc_fashion.annotate(folder, body) == {"kept": 2, "written": 2}
    assert ubc_fashion.cut(**fashion) == {"kept": 4} and ubc_fashion.annotate(folder, body) == {"kept": 4}
    assert all(moments(folder)[path] == moment for path, moment in before.items()) and not reasons(folder)


def test_what_is_broken_is_made_again_with_its_condition(fashion):
    folder = fashion["folder"]
    ubc_fashion.cut(**fashion), ubc_fashion.annotate(folder, body)
    before = moments(folder)
    (folder / "videos/train_B.mp4").write_bytes(b"torn")
    (folder / "conditions/test_C.mp4").unlink()
    (folder / "reports/train_91-3003CN5S.json").write_text("{")
    assert ubc_fashion.annotate(folder, body) == {"skipped": 2, "kept": 1, "written": 1}
    assert reasons(folder)["videos/train_91-3003CN5S.mp4"].startswith("got an unreadable train_91-3003CN5S.json")
    assert ubc_fashion.cut(**fashion) == {"kept": 2, "written": 2}
    assert reasons(folder) == dict.fromkeys(
        ("conditions/train_B.mp4", "conditions/train_91-3003CN5S.mp4"),
        "got a condition of an earlier video, expected one of this; run annotate",
    )
    assert ubc_fashion.annotate(folder, body) == {"kept": 2, "written": 2} and not reasons(folder)
    kept = {"videos/train_A1P+0ZhMAiS.mp4", "conditions/train_A1P+0ZhMAiS.mp4", "videos/test_C.mp4"}
    assert {path for path, moment in moments(folder).items() if moment == before[path]} == kept


def test_missing_and_broken_raw_videos_are_dropped_until_they_are_there(fashion):
    folder = fashion["folder"]
    (fashion["videos"] / "train/91-3003CN5S.mp4").rename(folder.parent / "away.mp4")
    (fashion["videos"] / "test/C.mp4").write_bytes(b"torn")
    assert ubc_fashion.cut(**fashion) == {"written": 2, "missing": 1, "broken": 1}
    ubc_fashion.annotate(folder, body)
    faults = reasons(folder)
    assert faults.pop("videos/test_C.mp4").startswith("C.mp4: got unreadable data")
    missing = "got no such raw video, expected it as listed; download it again"
    assert faults == {"videos/train_91-3003CN5S.mp4": missing}
    (folder.parent / "away.mp4").rename(fashion["videos"] / "91-3003CN5S.mp4")
    (fashion["videos"] / "train/B.mp4").unlink()  # no longer needed
    assert ubc_fashion.cut(**fashion) == {"written": 1, "kept": 2, "broken": 1}


def test_another_size_or_another_raw_video_makes_clips_again(fashion):
    ubc_fashion.cut(**fashion)
    movie(fashion["videos"] / "test/C.mp4", frames=7, seed=9)
    assert ubc_fashion.cut(**fashion) == {"kept": 3, "written": 1}
    assert ubc_fashion.cut(**fashion | {"size": (16, 16)}) == {"written": 4}


@pytest.mark.parametrize(
    "lists, message",
    [
        (
            ("https://a/x.mp4\nhttps://a/y.jpg\n", "https://a/z.mp4"),
            "a.txt, line 2: got 'https://a/y.jpg', expected an a",
        ),
        (
            ("https://a/x.mp4", "https://a/z.mp4\nhttps://b/x.mp4"),
            "b.txt, line 2: got x.mp4, .* it is in train already",
        ),
        (("\n\n", "https://a/z.mp4"), "a.txt: got an empty list"),
        (("https://a/x.mp4", "https://a/z.mp4"), "got none of the 2 listed videos"),
    ],
)
def test_wrong_lists_are_named(tmp_path, lists, message):
    for name, text in zip("ab", lists, strict=True):
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "other.mp4").write_bytes(b"a video")
    with pytest.raises(ValueError, match=message):
        ubc_fashion.cut(tmp_path / "out", tmp_path, tmp_path / "a.txt", tmp_path / "b.txt")
    with pytest.raises(FileNotFoundError, match="c.txt: got no such file, expected the list of test videos"):
        ubc_fashion.names(tmp_path / "b.txt", tmp_path / "c.txt")


def test_clips_without_people_are_dropped(fashion):
    folder = fashion["folder"]
    ubc_fashion.cut(**fashion)

    def blind_at_first(picture):  # the grey of the left edge tells the time
        return None if picture[:, 0].mean() < 35 else body(picture)

    ubc_fashion.annotate(folder, blind_at_first)
    report = json.loads((folder / "reports/train_B.json").read_text())
    assert report["annotate"] == {"detector": None, "frames": 6, "missing": [0, 1]}
    condition, _ = read_video(folder / "conditions/train_B.mp4")
    assert condition.any(axis=(1, 2, 3)).tolist() == [False] * 2 + [True] * 4
    reason = "got nothing detected in 2 of 6 frames, expected at most 0.1 of them"
    assert reasons(folder)["conditions/train_B.mp4"] == reason
    assert not reasons(folder, most_missing=0.5)


def face_film(path, boxes, size=(64, 96), pan=0, fps=10.0):
    """A red square that stands for a face where `boxes` (x, y or None per frame) say; the background may pan."""
    grid = np.random.default_rng(1).integers(0, 2, (size[0] // 8, (size[1] + len(boxes) * pan) // 8 + 1), np.uint8)
    wall = 200 * grid.repeat(8, 0).repeat(8, 1)
    pictures = []
    for number, at in enumerate(boxes):
        picture = wall[:, number * pan : number * pan + size[1], None].repeat(3, 2)
        if at:
            picture[at[1] : at[1] + 16, at[0] : at[0] + 16] = (255, 0, 0)
        pictures.append(picture)
    write_video(path, np.stack(pictures), fps, crf=1)


def red(picture):
    """The box of what is red, with a score, and a weak one elsewhere."""
    rows, columns = np.nonzero((picture[..., 0] > 150) & (picture[..., 1] < 90) & (picture[..., 2] < 90))
    weak = [0, 0, 40, 40, 0.2]
    return np.array(
        [weak, [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, 0.9]] if len(rows) else [weak]
    )


def test_a_face_that_is_lost_begins_a_new_clip(tmp_path):
    """Seen for 1.5 s, away, back for 2.5 s (over the longest clip), away, back for too short a time."""
    seen = [(30, 20)] * 15 + [None] + [(40 + n % 2, 24) for n in range(25)] + [None] + [(30, 20)] * 4
    face_film(tmp_path / "raw/show.mp4", seen)
    out = tmp_path / "out"
    assert anime_faces.cut(out, tmp_path / "raw", detect=red, size=(32, 32), **FACES) == {"written": 3}
    reports = [json.loads((out / f"reports/train_show-{k:03d}.json").read_text())["cut"] for k in range(3)]
    assert reports[0]["frames"] == [0, 15] and reports[0]["box"] == [12, 22, 32, 32]  # the face with half of it around
    (first, middle), (again, end) = (report["frames"] for report in reports[1:])
    assert (first, end) == (16, 41) and middle == again and {middle - first, end - middle} == {12, 13}
    assert reports[1]["box"] == [15, 32, 34, 34]  # around the boxes of all frames
    assert probe(out / "videos/train_show-001.mp4")["height"] == 32
    assert anime_faces.annotate(out, lambda picture: [(16, 16, 1.0)] * 27 + [(4, 5, 0.1)]) == {"written": 3}
    condition, _ = read_video(out / "conditions/train_show-000.mp4")
    assert condition[0, 16, 16].tolist() == [128, 128, 255] and not condition[0, 5, 4].any() and not reasons(out)


def test_conditions_of_drawn_faces_are_the_26_dots_that_models_are_driven_by():
    clip = StudioFaces("val", 1, frames=3, size=(128, 128))[0]
    rest = torch.zeros(1, 1, 45, dtype=torch.float64)
    real = face.landmarks(bodies.split_seeds("val", 1), rest, (128, 128))[0][0].double().numpy()
    told = landmarks.to_anime(real, ())[0]
    found = np.full((28, 3), 0.9)
    found[[*landmarks.FOUND], :2] = told * 128 - 0.5
    found[[15, 21], :2] = 0  # below the eyes: of no use
    drawn = anime_faces.dots(found[None], (128, 128))[0]
    assert np.array_equal(drawn, landmarks.draw(told, (128, 128), landmarks.dot_radius(real[0], 128)))
    assert {*map(tuple, np.unique(drawn.reshape(-1, 3), axis=0))} == {
        *map(tuple, np.unique(clip.condition.reshape(-1, 3), axis=0))
    }
    found[11:17, 2] = 0.1  # an eye that hair covers
    assert not (anime_faces.dots(found[None], (128, 128)) == landmarks.COLOURS["left eye"]).all(-1).any()
    with pytest.raises(ValueError, match=r"got shape \(1, 68, 2\), expected \(…, 28, 2\)"):
        anime_faces.dots(np.zeros((1, 68, 2)), (128, 128))


def test_a_background_that_moves_is_dropped(tmp_path):
    sway = [(40 + n % 4, 30) for n in range(12)]
    face_film(tmp_path / "raw/still.mp4", sway)
    face_film(tmp_path / "raw/pan.mp4", sway, pan=4)
    out, asked = tmp_path / "out", []
    arguments = {"folder": out, "videos": tmp_path / "raw", "size": (32, 32)} | FACES

    def counting(picture):
        asked.append(1)
        return red(picture)

    assert anime_faces.cut(**arguments, detect=counting) == {"written": 1, "rejected": 1}
    assert len(asked) == 24
    (reason,) = [reason for path, reason in reasons(out).items() if path == "videos/train_pan-000.mp4"]
    assert reason.startswith("got a background of which 0.") and "--most-moving" in reason
    assert anime_faces.cut(**arguments, detect=counting) == {"kept": 1, "rejected": 1}
    assert anime_faces.cut(**arguments, detect=counting, most_moving=1) == {"written": 2}
    assert len(asked) == 24  # the tracks were kept
    assert anime_faces.cut(**arguments | {"least_seconds": 1.3}, detect=counting) == {}
    stale = "got a clip of other rules, expected one of the last cut; remove it"
    assert reasons(out) == {"videos/train_still-000.mp4": stale, "videos/train_pan-000.mp4": stale}


def test_moving_measures_the_background_alone():
    face = np.array([0.25, 0.25, 0.75, 0.75])
    still = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)[None].repeat(8, 0)
    assert anime_faces.moving(still, face) == 0
    talking = still.copy()
    talking[::2, 16:48, 16:48], talking[::2, 50:] = 255, 255  # the face, and the shoulders below it
    assert anime_faces.moving(talking, face) == 0
    flicker = still // 2
    flicker[::2, :, :8] += 100  # a strip at the left edge
    assert 0.1 < anime_faces.moving(flicker, face) < 0.4
    assert anime_faces.moving(talking, np.array([0.0, 0.0, 1.0, 1.0])) == 0


def test_link_follows_the_nearest_and_square_stays_inside():
    a, b = np.array([0.0, 0, 10, 10]), np.array([6.0, 0, 16, 10])
    samples = [(0, np.stack([a, b])), (5, np.stack([b + 1, a + 1])), (10, (b + 2)[None]), (15, np.stack([a, b + 3]))]
    tracks = anime_faces.link(samples, 0.3)
    assert [[frame for frame, _ in track] for track in tracks] == [[0, 5], [0, 5, 10, 15], [15]]
    assert all(anime_faces.iou(one[1], two[1]) > 0.5 for track in tracks for one, two in pairwise(track))
    assert anime_faces.square(np.array([0.0, 0, 10, 12]), 100, 80, 0.5) == (0, 0, 24, 24)
    assert anime_faces.square(np.array([60.0, 10, 80, 90]), 100, 80, 0.5) == (10, 0, 80, 80)
    with pytest.raises(ValueError, match="expected 0 < least_seconds <= most_seconds"):
        anime_faces.Rules(least_seconds=30)


def test_a_broken_video_of_faces_is_named_until_it_is_good(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/show.mp4").write_bytes(b"torn")
    arguments = {"folder": tmp_path / "out", "videos": tmp_path / "raw", "detect": red, "size": (32, 32)} | FACES
    assert anime_faces.cut(**arguments) == {"broken": 1}
    assert reasons(tmp_path / "out")["videos/train_show.mp4"].startswith("got unreadable data")
    face_film(tmp_path / "raw/show.mp4", [(30, 20)] * 12)
    assert anime_faces.cut(**arguments) == {"written": 1}
    assert list(reasons(tmp_path / "out")) == ["conditions/train_show-000.mp4"]
    movie(tmp_path / "raw/more/show.mkv")
    with pytest.raises(ValueError, match="expected one video show; rename or remove one"):
        anime_faces.cut(**arguments)


TABLE = """videoID,url,timestamp,caption,matching_score
-a,https://y/-a,"[['0:00:00.000', '0:00:00.600'], ['0:00:00.500', '0:00:01.000']]","['a, b', 'c']","[0.5, 0.4]"
gone,https://y/gone,"[['0:00:00.000', '0:00:07.733']]",['d'],[0.9]
b,https://y/b,"[['0:00:00.200', '0:00:00.802'], ['0:00:09.000', '0:01:00.000']]","['e
f', 'g']","[0.6, 0.7]"
"""


@pytest.fixture
def panda(tmp_path):
    for name in ("-a", "b"):
        movie(tmp_path / f"raw/{name}.mp4", frames=10, size=(48, 80))
    (tmp_path / "table.csv").write_text(TABLE)
    names = {"folder": "panda", "videos": "raw", "table": "table.csv"}
    return {"size": (16, 16)} | {key: tmp_path / name for key, name in names.items()}


def test_panda_from_table_to_clips(panda):
    out = panda["folder"]
    assert panda70m.cut(**panda) == {"written": 3, "broken": 1}
    assert panda70m.annotate(out, lambda picture: picture[..., 1] / 255) == {"written": 3}
    faults = reasons(out)
    assert faults == {"videos/train_b_9000-60000.mp4": faults["videos/train_b_9000-60000.mp4"]}
    assert "got a video of 1.0 s, expected one that holds 9 … 29 s" in faults["videos/train_b_9000-60000.mp4"]
    path = verbs.manifest(out, verbs.check(out), verbs.split_of, panda70m.LICENCE)
    assert [(entry.path, entry.stop) for entry in read_manifest(path)] == [
        ("videos/train_-a_0-600.mp4", 6),
        ("videos/train_-a_500-1000.mp4", 5),
        ("videos/train_b_200-802.mp4", 6),
    ]
    clip = ManifestClips(path, "train", (16, 16), 5)[0]
    assert np.array_equal(clip.condition, clip.frames[..., 1:2].repeat(3, -1)) and clip.licence == panda70m.LICENCE


def test_choice_and_patch_of_panda_s_clips_are_seeded_by_their_names(panda, tmp_path):
    boxes = {}
    for folder, clips in (("one", 2), ("two", 3), ("three", None)):
        out = tmp_path / folder
        assert sum(panda70m.cut(**panda | {"folder": out}, clips=clips, least_score=0.45).values()) == (clips or 3)
        for path in (out / "reports").glob("*.json"):
            cut = json.loads(path.read_text())["cut"]
            boxes.setdefault(path.stem, []).append(tuple(cut.get("box") or ()))
    assert sorted(map(len, boxes.values())) == [2, 3, 3] and all(len(set(same)) == 1 for same in boxes.values())
    patches = [panda70m._patch(str(k), probe(panda["videos"] / "b.mp4"), (0, 1), (16, 16), 0.5).box for k in range(40)]
    sides = [height for _, _, height, _ in patches]
    assert all(height == width and 24 <= height <= 48 for _, _, height, width in patches) and len(set(sides)) > 10
    assert all(top + side <= 48 and left + side <= 80 for top, left, side, _ in patches)
    assert max(left + side for _, left, side, _ in patches) > 70 and min(left for _, left, _, _ in patches) < 10


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("[0.6, 0.7]", "[0.6]", "line 5: got 2 times and 1 scores"),
        ("'0:00:00.802']", "'soon']", "line 5: got the time 'soon'"),
        ("[['0:00:00.000', '0:00:00.600'],", "[['0:00:00.000'],", r"line 2: got \['0:00:00.000'\], scored 0.5"),
        ("\"[['0:00:00.000', '0:00:00.600'],", "\"[open('x'),", r"line 2: got \"\[open\('x'\)"),
        ("'0:00:00.600'", "'0:00:00.000'", "line 2: got a clip from 0 to 0 seconds"),
        (",['d'],[0.9]", "", "line 3: got another number of fields than the 5 columns"),
        ("matching_score", "score", "line 1: got no column matching_score"),
    ],
)
def test_a_table_that_cannot_be_read_is_named_with_its_line(panda, old, new, message):
    assert old in TABLE
    panda["table"].write_text(TABLE.replace(old, new))
    with pytest.raises(ValueError, match=f"table.csv, {message}.*, expected a row of Panda-70M"):
        panda70m.cut(**panda)
    assert not panda["folder"].exists()


def test_panda_without_a_matching_clip_is_an_error(panda):
    with pytest.raises(ValueError, match="got no clip scored 0.99 or more of the 2 videos"):
        panda70m.cut(**panda, least_score=0.99)
    with pytest.raises(FileNotFoundError, match="x.csv: got no such file, expected a table of Panda-70M"):
        panda70m.cut(**panda | {"table": "x.csv"})
    with pytest.raises(ValueError, match=r"depth: got shape \(4, 4\), 0 … 2, expected \(4, 4\), 0 … 1"):
        panda70m.grey(np.linspace(0, 2, 16).reshape(1, 4, 4), (4, 4))


def test_all_work_can_be_sent_to_other_processes(fashion, panda, monkeypatch):
    """As with a scheduler: functions and items arrive as copies."""
    sent = []

    def elsewhere(function, items, workers, progress, label, scheduler):
        sent.append(scheduler)
        work = pickle.loads(pickle.dumps((function, list(items))))
        return [pickle.loads(pickle.dumps(work[0](item))) for item in work[1]]

    monkeypatch.setattr(verbs, "each", elsewhere)
    face_film(panda["videos"].parent / "faces/show.mp4", [(30, 20)] * 12)
    assert ubc_fashion.cut(**fashion, scheduler="a") == {"written": 4}
    assert ubc_fashion.annotate(fashion["folder"], body, scheduler="b") == {"written": 4}
    assert panda70m.cut(**panda, scheduler="c") == {"written": 3, "broken": 1}
    faces = {"folder": panda["folder"], "videos": panda["videos"].parent / "faces", "detect": red, "size": (32, 32)}
    assert anime_faces.cut(**faces, scheduler="d", **FACES) == {"written": 1}
    assert len(verbs.check(fashion["folder"], scheduler="e")) == 8 and sent == list("abcde")
    pickle.loads(pickle.dumps(raw.Lazy("body_detector", "cpu")))


def test_dask_gives_the_same_as_threads(fashion):
    pytest.importorskip("distributed")
    assert ubc_fashion.cut(**fashion, workers=2, scheduler="local") == {"written": 4}
    assert ubc_fashion.cut(**fashion) == {"kept": 4}
    with pytest.raises(ZeroDivisionError):
        verbs.each(partial(divmod, 1), [1, 0], scheduler="local")


def test_a_cluster_at_an_address_gives_the_same(fashion):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster("", n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        assert address.startswith("tcp://") and ubc_fashion.cut(**fashion, scheduler=address) == {"written": 4}
        assert verbs.check(fashion["folder"], scheduler=address) == verbs.check(fashion["folder"])
        with pytest.raises(ZeroDivisionError):
            verbs.each(partial(divmod, 1), [1, 0], scheduler=address)
    assert ubc_fashion.cut(**fashion) == {"kept": 4}


def test_what_is_lacking_is_said_with_its_remedy(fashion, monkeypatch, capsys):
    def nobody(address):
        raise OSError(f"timed out at {address}")

    cluster = SimpleNamespace(Client=nobody, as_completed=None)
    monkeypatch.setitem(sys.modules, "distributed", cluster)
    with pytest.raises(ValueError, match="got no answer from tcp://a:1, expected a Dask scheduler; start one"):
        ubc_fashion.cut(**fashion, scheduler="tcp://a:1")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ModuleNotFoundError, match=r"distributed is missing; `pip install -e .\[cluster\]`"):
        ubc_fashion.cut(**fashion, scheduler="local")
    with pytest.raises(ValueError, match="clip 'holiday': got no split, expected train_, val_, test_ at its beginning"):
        verbs.split_of("holiday")
    ubc_fashion.cut(**fashion)
    monkeypatch.chdir(fashion["folder"])  # with no weights/ in it
    with pytest.raises(SystemExit) as end:
        anime_faces.main(["annotate", "--folder", "."])
    assert (
        end.value.code == 2 and "no anime landmark detector: hrnetv2.onnx missing in weights" in capsys.readouterr().err
    )


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Calls a command line in a folder, at a small size and with stand-ins for detectors; its status and output."""
    tools = {"body_detector": body, "landmark_detector": lambda picture: [(8, 12)] * 28, "face_detector": red}
    for name, tool in (tools | {"depth_estimator": lambda picture: picture[..., 0] / 255}).items():
        stand_in = raw.detectors.Detector("stand-in", tool)
        monkeypatch.setattr(raw.detectors, name, lambda device, stand_in=stand_in: stand_in)
    monkeypatch.setattr(raw.Lazy, "_made", {})
    for module in (ubc_fashion, panda70m, anime_faces):
        defaults = tuple(SMALL if value == module.SIZE else value for value in module.cut.__defaults__)
        monkeypatch.setattr(module.cut, "__defaults__", defaults)

    def call(module, words):
        verb, *others = words.split()
        status = module.main([verb, "--folder", str(tmp_path / "out"), "--quiet", *others])
        return status, capsys.readouterr().out

    return call


def test_the_command_line_of_ubc_fashion(fashion, call, monkeypatch):
    monkeypatch.chdir(fashion["folder"].parent)
    lists = "--train-list train.txt --test-list test.txt"
    assert call(ubc_fashion, f"cut --videos raw/train {lists}") == (0, "cut: 1 missing, 3 written\n")
    assert call(ubc_fashion, "annotate --device cpu --workers 2") == (0, "annotate: 3 written\n")
    status, shown = call(ubc_fashion, "check --most-missing 0")
    assert status == 1 and "3 of 4 clips are complete\ndropped videos/test_C.mp4: got no such raw video" in shown
    status, shown = call(ubc_fashion, "manifest")
    assert status == 0 and shown.endswith("manifest.jsonl: train 3 clips, 18 frames, licence CC BY-NC 4.0\n")
    again = call(ubc_fashion, f"prepare --videos raw/train {lists} --device cpu --most-missing 0.1 --licence mine")
    assert again[0] == 0 and again[1].startswith("cut: 3 kept, 1 missing\nannotate: 3 kept\n")
    assert again[1].endswith("3 clips, 18 frames, licence mine\n")


def test_the_command_line_of_panda70m(panda, call, monkeypatch):
    monkeypatch.chdir(panda["folder"].parent)
    source = "cut --videos raw --table table.csv --least-score 0.45"
    assert call(panda70m, f"{source} --split val --clips 3") == (0, "cut: 1 broken, 2 written\n")
    assert call(panda70m, f"{source} --least-patch 1 --most-seconds 0.2")[1] == "cut: 1 broken, 2 written\n"
    assert call(panda70m, "annotate") == (0, "annotate: 4 written\n")
    assert call(panda70m, "manifest")[1].endswith(
        "manifest.jsonl: train 2 clips, 4 frames, licence Panda-70M research licence\n"
        "manifest.jsonl: val 2 clips, 12 frames, licence Panda-70M research licence\n"
    )


def test_the_command_line_of_anime_faces(tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    face_film("raw/show.mp4", [(30, 20)] * 12)
    rules = "--least-seconds 1 --least-side 8 --rate 10"
    assert call(anime_faces, f"cut --videos raw --split test {rules}") == (0, "cut: 1 written\n")
    assert call(anime_faces, "annotate") == (0, "annotate: 1 written\n")
    report = json.loads((tmp_path / "out/reports/test_show-000.json").read_text())
    assert report["annotate"] == {"detector": "stand-in", "frames": 12, "missing": []}
    assert call(anime_faces, "manifest --licence mine")[1].endswith("test 1 clips, 12 frames, licence mine\n")
    again = call(anime_faces, f"prepare --videos raw --split test {rules} --device cpu")
    assert again[1].startswith("cut: 1 kept\nannotate: 1 kept\n")


@pytest.mark.parametrize("module", [ubc_fashion, panda70m, anime_faces])
def test_the_command_lines_help(module, capsys):
    with pytest.raises(SystemExit) as end:
        module.main(["cut", "--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and f"python -m {module.__name__} cut --folder" in shown and "--scheduler" in shown
