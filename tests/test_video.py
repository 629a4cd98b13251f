"""Video files: what is written comes back, any range exactly, and every kind of broken file is named."""

import io
import pickle
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rainlab.data.video import VideoError, iter_video, probe, read_picture, read_video, write_video


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def numbered(count, size=(32, 48)):
    """Frames that show their own number as eight black or white bars, readable after lossy compression."""
    bits = (np.arange(count)[:, None] % 256 >> np.arange(8)) & 1
    row = np.repeat(bits, size[1] // 8, axis=1)
    return np.broadcast_to(row[:, None, :, None], (count, *size, 3)).astype(np.uint8) * 255


def numbers(frames):
    """What `numbered` frames show."""
    bars = frames[:, :, :, 1].mean(1).reshape(len(frames), 8, -1).mean(-1) > 127
    return (bars << np.arange(8)).sum(1).tolist()


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    """256 numbered frames: more than x264 puts behind one key frame."""
    path = tmp_path_factory.mktemp("video") / "long.mp4"
    write_video(path, numbered(256))
    return path


@settings(max_examples=15)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_lossless_video_comes_back_bit_for_bit(tmp_path_factory, frames, height, width, seed):
    path = tmp_path_factory.mktemp("lossless") / "clip.mp4"
    pictures = noise(frames, height, width, 3, seed=seed)
    write_video(path, pictures, fps=25, lossless=True)
    read, fps = read_video(path)
    assert np.array_equal(read, pictures) and fps == 25
    assert probe(path) == {"frames": frames, "height": height, "width": width, "fps": 25}


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 200, 0), (30, 60, 250), (220, 180, 150), (0, 0, 0)])
def test_lossy_video_keeps_colours_and_channel_order(tmp_path, colour):
    frames = np.broadcast_to(np.array(colour, np.uint8), (3, 32, 48, 3))
    write_video(tmp_path / "colour.mp4", frames)
    assert np.abs(read_video(tmp_path / "colour.mp4")[0] - np.array(colour, float)).max() <= 4


def test_lossy_video_is_the_kind_every_player_shows_and_crf_sets_its_size(tmp_path):
    for crf in (10, 40):
        write_video(tmp_path / f"{crf}.mp4", noise(4, 32, 48, 3), crf=crf)
    with av.open(str(tmp_path / "10.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].pix_fmt == "yuv420p"
    assert (tmp_path / "40.mp4").stat().st_size < (tmp_path / "10.mp4").stat().st_size / 2


@pytest.mark.parametrize("fps", [12.0, 23.976, 29.97, 30000 / 1001, 60.0])
def test_frame_rates_come_back(tmp_path, fps):
    write_video(tmp_path / "rate.mp4", noise(3, 2, 2, 3), fps=fps)
    assert probe(tmp_path / "rate.mp4")["fps"] == pytest.approx(fps, rel=1e-6)


@pytest.mark.parametrize("start, stop", [(0, 3), (1, 2), (37, 41), (249, 253), (250, 252), (251, 256), (255, None)])
def test_any_range_is_exact_to_the_frame(long_video, start, stop):
    assert numbers(read_video(long_video, start, stop)[0]) == list(range(start, stop or 256))


def test_iteration_and_reading_agree(long_video):
    assert np.array_equal(np.stack(list(iter_video(long_video, 240, 256))), read_video(long_video, 240, 256)[0])


def test_reading_starts_at_the_key_frame_before_the_range(long_video, tmp_path):
    """With the first key frame's data destroyed, what follows the second key frame can still be read."""
    with av.open(str(long_video)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        first, second, *_ = [packet for packet in packets if packet.is_keyframe]
        key = round(second.pts * second.time_base * 12)
    data = bytearray(long_video.read_bytes())
    data[first.pos : first.pos + first.size] = bytes(first.size)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(data)
    assert numbers(read_video(broken, key + 1, key + 4)[0]) == [key + 1, key + 2, key + 3]
    with pytest.raises(VideoError, match="got unreadable data .* expected a whole video"):
        read_video(broken, key - 1, key + 4)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate_late_start_and_open_groups_of_pictures_are_exact_to_the_frame(tmp_path, suffix):
    path, count = tmp_path / f"variable.{suffix}", 60
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"g": "12", "bf": "3", "x264-params": "open-gop=1"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number, picture in enumerate(numbered(count)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = 100 + number**2  # ever slower
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert probe(path)["frames"] == count
    for start in range(0, count - 2, 3):
        assert numbers(read_video(path, start, start + 3)[0]) == [start, start + 1, start + 2]


def test_a_file_written_again_is_read_again(tmp_path):
    path = tmp_path / "twice.mp4"
    for count in (3, 5):
        write_video(path, numbered(count))
        assert probe(path)["frames"] == count


def test_resizing_averages_and_keeps_the_shape(tmp_path):
    checks = (np.indices((32, 48)).sum(0) % 2 * 255).astype(np.uint8)
    write_video(tmp_path / "checks.mp4", np.broadcast_to(checks[None, :, :, None], (1, 32, 48, 3)), lossless=True)
    small = read_video(tmp_path / "checks.mp4", size=(8, 12))[0]
    assert small.shape == (1, 8, 12, 3)
    assert np.abs(small.astype(int) - 127).max() < 12  # without antialiasing some pixels would be black or white


def test_another_shape_is_refused_unless_cropped(tmp_path):
    frames = np.zeros((1, 40, 40, 3), np.uint8)
    frames[:, :, 10:30] = 200  # the part that a crop to twice as high as wide keeps
    write_video(tmp_path / "square.mp4", frames, lossless=True)
    with pytest.raises(VideoError, match="square.mp4: got 40×40 pixels, expected the shape of 20×10 .* fit='crop'"):
        read_video(tmp_path / "square.mp4", size=(20, 10))
    assert (read_video(tmp_path / "square.mp4", size=(20, 10), fit="crop")[0] == 200).all()
    assert read_video(tmp_path / "square.mp4", size=(50, 51))[0].shape == (1, 50, 51, 3)  # 2 % is let through
    with pytest.raises(ValueError, match="got 'stretch', expected 'error' or 'crop'"):
        read_video(tmp_path / "square.mp4", size=(20, 10), fit="stretch")


def shortened(data):
    return data[: len(data) * 2 // 3]


def torn_behind_the_header(data, folder):
    """The same video with its table of contents first, as for the web, and the end missing."""
    (folder / "whole.mp4").write_bytes(data)
    with (
        av.open(str(folder / "whole.mp4")) as source,
        av.open(str(folder / "web.mp4"), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return shortened((folder / "web.mp4").read_bytes())


def sound_only(folder):
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return (folder / "sound.mp4").read_bytes()


@pytest.mark.parametrize(
    "kind, got",
    [
        ("missing", "no such file"),
        ("empty", "an empty file"),
        ("text", "unreadable data"),
        ("shortened", "unreadable data"),
        ("torn", r"data for \d+ frames"),
        ("sound", "no video stream"),
    ],
)
def test_broken_files_are_named_with_got_expected_and_a_way_out(long_video, tmp_path, kind, got):
    whole, path = long_video.read_bytes(), tmp_path / f"{kind}.mp4"
    if kind != "missing":
        path.write_bytes(
            {
                "empty": lambda: b"",
                "text": lambda: b"not a video\n" * 100,
                "shortened": lambda: shortened(whole),
                "torn": lambda: torn_behind_the_header(whole, tmp_path),
                "sound": lambda: sound_only(tmp_path),
            }[kind]()
        )
    for read in (probe, read_video):
        with pytest.raises(VideoError, match=rf"{kind}\.mp4: got {got}.*, expected .+; .+"):
            read(path)


def test_a_range_beyond_the_end_and_one_without_sense(long_video):
    with pytest.raises(VideoError, match="long.mp4: got 256 frames, expected at least 300; ask for fewer"):
        read_video(long_video, 290, 300)
    with pytest.raises(VideoError, match="got 256 frames, expected at least 257"):
        read_video(long_video, 256)
    for start, stop in ((-1, 4), (5, 5), (5, 3)):
        with pytest.raises(ValueError, match=rf"got {start} … {stop}, expected 0 <= start < stop"):
            read_video(long_video, start, stop)


def test_errors_survive_pickling():
    error = VideoError(Path("a.mp4"), "3 frames", "at least 5", "give a longer one")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == "a.mp4: got 3 frames, expected at least 5; give a longer one" and copy.got == error.got


@pytest.mark.parametrize(
    "frames, options, error, message",
    [
        (np.zeros((2, 4, 4, 3)), {}, TypeError, "got float64, expected uint8"),
        (noise(4, 4, 3), {}, ValueError, r"got shape \(4, 4, 3\), expected \(f, h, w, 3\)"),
        (noise(2, 3, 4, 4), {}, ValueError, r"got shape \(2, 3, 4, 4\)"),
        (noise(0, 4, 4, 3), {}, ValueError, r"got shape \(0, 4, 4, 3\)"),
        (noise(2, 5, 4, 3), {}, ValueError, "got 5×4, expected even numbers .* lossless=True"),
        (noise(2, 4, 4, 3), {"fps": 0}, ValueError, "fps > 0"),
        (noise(2, 4, 4, 3), {"crf": 60}, ValueError, "crf 0 … 51"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, frames, options, error, message):
    with pytest.raises(error, match=message):
        write_video(tmp_path / "bad.mp4", frames, **options)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, numbered(3))
    old = path.read_bytes()
    with pytest.raises(av.FFmpegError):
        write_video(path, np.zeros((1, 2, 20000, 3), np.uint8))  # wider than x264 can
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_pictures(tmp_path):

    picture = np.random.default_rng(0).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    picture[:5, :, 3] = 0
    picture[5:, :, 3] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    whole = read_picture(tmp_path / "a.png")
    assert (whole[:5] == 255).all() and (whole[5:] == picture[5:, :, :3]).all()  # transparent is white
    assert read_picture(tmp_path / "a.png", (20, 15)).shape == (20, 15, 3)
    assert read_picture(tmp_path / "a.png", (30, 30), fit="crop").shape == (30, 30, 3)
    with pytest.raises(VideoError, match="40×30 pixels"):
        read_picture(tmp_path / "a.png", (30, 30))
    (tmp_path / "b.png").write_text("not a picture")
    for name in ("b.png", "missing.png"):
        with pytest.raises(VideoError, match="a picture file"):
            read_picture(tmp_path / name)


def test_pictures_from_bytes_and_cameras(tmp_path):
    picture = noise(40, 30, 3)
    data = io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held on its side
    Image.fromarray(picture).save(data, "png", exif=turned)
    assert np.array_equal(read_picture(data), np.rot90(picture, -1))
    for broken in (b"", b"nothing", data.getvalue()[:200]):
        with pytest.raises(VideoError, match="the picture.*a picture file"):
            read_picture(io.BytesIO(broken))


def test_a_picture_that_would_fill_the_memory_is_refused(monkeypatch):
    data = io.BytesIO()
    Image.fromarray(noise(40, 30, 3)).save(data, "png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(VideoError, match="decompression bomb"):
        read_picture(data)
