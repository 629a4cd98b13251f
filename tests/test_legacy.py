"""Protocol disco-legacy gives what the published evaluation gives, faults included."""

import json

import micro
import numpy as np
import pytest

from rainlab.config import override
from rainlab.measure import evaluate, legacy, metrics

# two clips of three frames, 20×17 pixels, by DisCo's code with OpenCV 5.0 and scikit-image 0.26
PUBLISHED = {
    "psnr": [29.372115739267134, 29.31767202645896],
    "ssim": [0.9860099018775772, 0.9872374948247966],
    "l1": [0.029579969242599004, 0.029162821991541715],
}


def clips():
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (2, 3, 20, 17, 3), dtype=np.uint8)
    return x, np.clip(x.astype(int) + draw.integers(-20, 21, x.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_numbers(name):
    assert getattr(legacy, name)(*clips()) == pytest.approx(PUBLISHED[name], rel=1e-12)


def test_bytes_overflow():
    x = np.full((3, 1, 8, 8, 3), 100, np.uint8)
    y = x + np.array([0, 16, 15], np.uint8)[:, None, None, None, None]  # 16² is 256, which is 0
    assert legacy.psnr(x, y) == pytest.approx([100, 100, 10 * np.log10(255**2 / 225)])
    assert metrics.psnr(x, y)[1] == pytest.approx(20 * np.log10(255 / 16), rel=1e-5)
    noise = np.random.default_rng(0).integers(0, 256, (2, 1, 1, 300, 300, 3), dtype=np.uint8)
    assert legacy.psnr(*noise)[0] == pytest.approx(27.9, abs=0.05) and metrics.psnr(*noise)[0] < 8


def test_a_window_begins_at_every_frame_but_the_last():
    film = micro.pictures(20)
    cut = legacy.windows(film)
    assert cut.shape == (4, 16, *film.shape[1:]) and all(np.array_equal(cut[i], film[i : i + 16]) for i in range(4))
    with pytest.raises(ValueError, match="clip: got 16 frames, expected more than 16"):
        legacy.windows(film[:16])


def test_a_gif_keeps_256_colours_and_every_frame():
    noise = micro.pictures(3)
    film = np.concatenate([noise[:1], noise[:1], noise[1:]])  # equal frames lie in one
    back = legacy.through_gif(film)
    assert back.shape == film.shape and np.array_equal(back[0], back[1]) and not np.array_equal(back[1], back[2])
    for frame, given in zip(back, film, strict=True):
        assert len(np.unique(given.reshape(-1, 3), axis=0)) > 256 >= len(np.unique(frame.reshape(-1, 3), axis=0))
    flat = np.full((2, 8, 8, 3), 7, np.uint8)
    flat[1, :, :4] = 200
    assert np.array_equal(legacy.through_gif(flat), flat)


def test_what_is_no_pair_of_byte_videos_is_refused():
    x, y = clips()
    for bad in (y.astype(np.float32), y[:, :, :10], y[0]):
        with pytest.raises(ValueError, match=r"truth: got .*, expected uint8 \(b, f, h, w, 3\), both of one shape"):
            legacy.psnr(x, bad)
    with pytest.raises(ValueError, match="pictures: got 6×17, expected at least 7×7"):
        legacy.ssim(x[:, :, :6], y[:, :, :6])


def test_both_protocols_on_the_same_frames():
    config = micro.micro()
    micro.write_weights(config)
    run = legacy.compare(config, record=True)
    held = evaluate.held_out(config)
    frames = evaluate.generate(config, "rain", held)
    for mode, protocol, module in (("correct", metrics.PROTOCOL, metrics), ("legacy", legacy.PROTOCOL, legacy)):
        row = run.value("psnr", method="rain", mode=mode)
        expected = metrics.bootstrap(module.psnr(frames, held.frames))
        assert (row["value"], row["ci_low"], row["ci_high"], row["n"]) == pytest.approx(tuple(expected))
        assert row["protocol"] == protocol
    assert run.value("l1", method="copy", mode="legacy")["n"] == config.data.test_clips
    assert legacy.compare(config).id == legacy.compare(config, record=True).id == run.id
    assert json.loads((run.path / "config.json").read_text("utf-8"))["inputs"]["rain"]
    with pytest.raises(FileNotFoundError, match="record=yes"):
        legacy.compare(override(config, {"data.test_clips": 3}))
