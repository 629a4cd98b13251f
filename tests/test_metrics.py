import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from rainlab.measure import metrics

SIZE = (20, 16)


def videos(b=2, f=3, size=SIZE, seed=0):
    """Smooth random truth and a noisy copy, uint8."""
    random = np.random.default_rng(seed)
    waves = random.random((b, f, 1, 1, 3)) + np.linspace(0, 3, size[0])[:, None, None] * random.random(3)
    truth = 120 + 80 * np.sin(waves + np.linspace(0, 2, size[1])[:, None])
    noisy = truth + 12 * random.standard_normal(truth.shape)
    return tuple(np.clip(video, 0, 255).astype(np.uint8) for video in (noisy, truth))


def numpy_psnr(x, y, mask):
    """Per frame, written out: 10 log10(255² / mean squared error)."""
    values = np.zeros(x.shape[:2])
    for i, j in np.ndindex(*x.shape[:2]):
        error = x[i, j][mask[i, j]].astype(float) - y[i, j][mask[i, j]].astype(float)
        values[i, j] = 10 * np.log10(255**2 / np.mean(error**2))
    return values.mean(1)


def numpy_ssim_map(x, y):
    """Wang et al. 2004, equation 13, one grey picture: Gaussian window 11×11, σ 1.5, K₁ 0.01, K₂ 0.03."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2

    def blur(picture):
        return (sliding_window_view(np.pad(picture, 5, mode="reflect"), (11, 11)) * window).sum((-1, -2))

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))


def numpy_ssim(x, y, mask):
    values = np.zeros(x.shape[:2])
    for i, j in np.ndindex(*x.shape[:2]):
        maps = [numpy_ssim_map(x[i, j, ..., c].astype(float), y[i, j, ..., c].astype(float)) for c in range(3)]
        values[i, j] = np.mean(maps, axis=0)[mask[i, j]].mean()
    return values.mean(1)


# -- PSNR and SSIM ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measure", "independent", "tolerance"), [(metrics.psnr, numpy_psnr, 1e-4), (metrics.ssim, numpy_ssim, 1e-4)]
)
def test_agrees_with_the_formula(measure, independent, tolerance):
    x, y = videos()
    mask = np.random.default_rng(1).random(x.shape[:-1]) > 0.6
    np.testing.assert_allclose(measure(x, y), independent(x, y, np.ones_like(mask)), atol=tolerance)
    np.testing.assert_allclose(measure(x, y, mask), independent(x, y, mask), atol=tolerance)


@pytest.mark.parametrize("measure", [metrics.psnr, metrics.ssim, metrics.temporal_difference_error])
def test_floats_tensors_and_bytes_give_the_same(measure):
    x, y = videos()
    expected = measure(x, y)
    assert expected.shape == (2,) and expected.dtype == np.float64
    np.testing.assert_allclose(measure(torch.from_numpy(x) / 255, torch.from_numpy(y)), expected, rtol=1e-5)
    np.testing.assert_allclose(measure(x / 255, y / 255), expected, rtol=1e-5)
    mirrored, back = np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1], np.broadcast_to(y, y.shape)  # odd memory
    np.testing.assert_array_equal(measure(mirrored, back), expected)


@pytest.mark.parametrize("size", [(64, 48), (6, 7)])
def test_an_exact_copy_scores_the_cap_and_one(size):
    _, y = videos(size=size)
    np.testing.assert_array_equal(metrics.psnr(y, y), 100.0)
    np.testing.assert_allclose(metrics.ssim(y, y), 1.0, atol=1e-5)


def test_frames_are_averaged_in_decibels():
    y = np.zeros((1, 2, 8, 8, 3), np.uint8)
    x = y.copy()
    x[0, 0], x[0, 1] = 255, 51
    np.testing.assert_allclose(metrics.psnr(x, y), (0 + 20 * np.log10(5)) / 2, atol=1e-5)


def test_clips_are_independent():
    x, y = videos(b=3)
    mask = np.random.default_rng(1).random(x.shape[:-1]) > 0.5
    together = metrics.evaluate(x, y, mask)
    for i in range(3):
        alone = metrics.evaluate(x[i : i + 1], y[i : i + 1], mask[i : i + 1])
        for name, values in alone.items():
            np.testing.assert_allclose(values[0], together[name][i], rtol=1e-6)


def test_what_is_outside_the_mask_does_not_count():
    x, y = videos()
    mask = np.zeros(x.shape[:-1], bool)
    mask[:, :, 8:, :] = True
    worse = x.copy()
    worse[:, :, :8] = 255 - worse[:, :, :8]
    np.testing.assert_array_equal(metrics.psnr(worse, y, mask), metrics.psnr(x, y, mask))
    assert (metrics.psnr(worse, y) < metrics.psnr(x, y) - 1).all()
    # SSIM looks 5 pixels around each, so it is blind only further away
    mask[:, :, 8:13] = False
    np.testing.assert_allclose(metrics.ssim(worse, y, mask), metrics.ssim(x, y, mask), atol=1e-6)
    assert (metrics.ssim(worse, y) < metrics.ssim(x, y) - 0.1).all()


def test_frames_without_foreground_do_not_count():
    x, y = videos()
    mask = np.ones(x.shape[:-1], bool)
    mask[0, 2] = False
    for measure in (metrics.psnr, metrics.ssim):
        np.testing.assert_allclose(measure(x, y, mask)[0], measure(x[:1, :2], y[:1, :2])[0], rtol=1e-6)
    mask[1] = False
    with pytest.raises(ValueError, match=r"no pixel in any frame of clips \[1\]"):
        metrics.psnr(x, y, mask)


# -- change over time ------------------------------------------------------------------------------------------------


def test_temporal_difference_error_sees_motion_not_colour():
    x, y = (video.astype(np.float32) / 255 for video in videos())
    np.testing.assert_allclose(metrics.temporal_difference_error(y * 0.5 + 0.3, y * 0.5), 0, atol=1e-4)
    expected = np.abs(np.diff(x.astype(float), axis=1) - np.diff(y.astype(float), axis=1)).mean((1, 2, 3, 4)) * 255
    np.testing.assert_allclose(metrics.temporal_difference_error(x, y), expected, rtol=1e-4)


def test_flicker_is_the_mean_step_in_grey_levels():
    still = np.full((1, 5, 4, 4, 3), 100, np.uint8)
    assert metrics.flicker(still) == 0
    blinking = still.copy()
    blinking[:, 1::2] = 107
    np.testing.assert_allclose(metrics.flicker(blinking), 7, rtol=1e-5)


@pytest.mark.parametrize(("first", "jump_at"), [(0, (4, 8)), (1, (1, 5, 9)), (3, (3, 7, 11)), (-1, (3, 7, 11))])
def test_border_ratio_finds_jumps_where_groups_meet(first, jump_at):
    ramp = np.arange(12) * 2.0
    for border in jump_at:
        ramp[border:] += 4
    video = np.broadcast_to(ramp[None, :, None, None, None] / 255, (1, 12, 4, 4, 3))
    np.testing.assert_allclose(metrics.border_ratio(video, 4, first), 3.0, rtol=1e-3)
    assert metrics.border_ratio(video, 4, first + 1) < 1


def test_border_ratio_of_stillness_is_one_and_of_jumps_alone_infinite():
    still = np.full((2, 8, 4, 4, 3), 100, np.uint8)
    still[1, 4:] = 120
    np.testing.assert_array_equal(metrics.border_ratio(still, 4), [1.0, np.inf])


@pytest.mark.parametrize(("frames", "group_size"), [(8, 1), (4, 4), (2, 2)])
def test_border_ratio_needs_both_kinds_of_steps(frames, group_size):
    with pytest.raises(ValueError, match="inside and between groups"):
        metrics.border_ratio(np.zeros((1, frames, 4, 4, 3), np.uint8), group_size)


def test_rhythm_finds_jumps_that_come_every_four_frames():
    """Of jumps alone the whole power lies on three of 43 frequencies; noise has 1, stillness and even change too."""
    jumps = np.cumsum(np.arange(46) % 4 == 0) / 20
    noise = np.random.default_rng(0).random((200, 46))
    noise[0], noise[1], noise[2] = jumps, 0.5, np.arange(46) / 50
    video = np.broadcast_to(noise[:, :, None, None, None], (200, 46, 1, 1, 3)).astype(np.float32)
    found = metrics.rhythm(video, 4)
    np.testing.assert_allclose(found[:3], [43 / 3, 1, 1], rtol=1e-3)
    assert abs(found[3:].mean() - 1) < 0.2
    assert metrics.rhythm(video[:1], 5) < 0.2  # another rhythm is not this one


@pytest.mark.parametrize("period", [1, 12])
def test_rhythm_needs_four_periods(period):
    with pytest.raises(ValueError, match="four periods or more, over 1"):
        metrics.rhythm(np.zeros((1, 46, 4, 4, 3), np.uint8), period)


def test_sharpness_error_compares_the_energy_of_the_edges():
    x, y = (video / 255 for video in videos())
    energy = lambda video: sum((np.diff(video, axis=axis) ** 2).mean((1, 2, 3, 4)) for axis in (2, 3))  # noqa: E731
    for video in (x, y, y / 2, y * 0 + 0.5):
        expected = abs(energy(video) / energy(y) - 1)
        np.testing.assert_allclose(metrics.sharpness_error(video, y), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="without any edge"):
        metrics.sharpness_error(y, y * 0 + 0.5)


def test_frechet_distance_of_gaussians():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(20_000, 3)) * [1, 2, 3]
    assert metrics.frechet(x, x) == pytest.approx(0, abs=1e-9)
    moved = 2 * x + [5, 0, 0]  # the covariance grows fourfold, and (2 - 1)² of its trace is the difference
    difference = np.square(x.mean(0) - moved.mean(0)).sum() + np.trace(np.cov(x, rowvar=False))
    assert metrics.frechet(x, moved) == pytest.approx(difference, rel=1e-6)
    with pytest.raises(ValueError, match="features: got 1 and 20000, expected at least two"):
        metrics.frechet(x[:1], x)


def test_a_surface_that_moves_with_the_flow_has_no_warping_error():
    """A picture pushed by whole pixels; what leaves it is not seen. Standing still is an error where it should move."""
    picture = videos(1, 1, seed=3)[0][0, 0]
    moving = np.stack([np.roll(picture, 2 * t, axis=1) for t in range(4)])[None]
    flow = np.broadcast_to(np.float32([2, 0]), (1, 3, *SIZE, 2))
    visible = np.ones((1, 3, *SIZE), bool)
    visible[..., -2:] = False
    assert metrics.warping_error(moving, flow, visible)[0] < 1e-3
    still = np.repeat(moving[:, :1], 4, axis=1)
    expected = abs(picture[:, 2:].astype(float) - picture[:, :-2]).mean()
    assert metrics.warping_error(still, flow, visible)[0] == pytest.approx(expected, rel=1e-4)
    assert metrics.warping_error(still, 0 * flow, visible)[0] < 1e-3
    with pytest.raises(ValueError, match=r"flow, visible: got .*, expected \(\(1, 3, 20, 16, 2\), \(1, 3, 20, 16\)\)"):
        metrics.warping_error(moving, flow[:, :2], visible)
    with pytest.raises(ValueError, match="without any visible pixel"):
        metrics.warping_error(moving, flow, visible & False)


# -- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluate_gives_what_the_single_measures_give():
    x, y = videos(f=5)
    mask = np.random.default_rng(1).random(x.shape[:-1]) > 0.5
    values = metrics.evaluate(x, y, mask)
    expected = {
        "psnr": metrics.psnr(x, y),
        "ssim": metrics.ssim(x, y),
        "psnr_fg": metrics.psnr(x, y, mask),
        "ssim_fg": metrics.ssim(x, y, mask),
        "tde": metrics.temporal_difference_error(x, y),
        "sharpness_error": metrics.sharpness_error(x, y),
    }
    assert values.keys() == expected.keys()
    for name in values:
        np.testing.assert_array_equal(values[name], expected[name])


def test_evaluate_leaves_out_what_cannot_be_asked():
    x, y = videos()
    assert metrics.evaluate(x, y).keys() == {"psnr", "ssim", "tde", "sharpness_error"}
    assert metrics.evaluate(x[:, :1], y[:, :1]).keys() == {"psnr", "ssim", "sharpness_error"}


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((1, 2, 8, 8, 3), np.uint8), np.zeros((1, 3, 8, 8, 3), np.uint8), r"frames \(1, 2, .*truth \(1, 3,"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3), np.uint8), r"expected \(b, f, h, w, 3\)"),
        (np.full((1, 2, 8, 8, 3), -1.0), np.zeros((1, 2, 8, 8, 3)), r"\[-1.0, -1.0\], expected uint8 or float in"),
        (np.full((1, 2, 8, 8, 3), 200.0), np.zeros((1, 2, 8, 8, 3)), "expected uint8 or float in"),
        (np.full((1, 2, 8, 8, 3), np.nan), np.zeros((1, 2, 8, 8, 3)), "expected uint8 or float in"),
        (np.zeros((1, 2, 8, 8, 3), np.int64), np.zeros((1, 2, 8, 8, 3), np.int64), "int64"),
    ],
)
def test_other_arrays_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        metrics.evaluate(x, y)


@pytest.mark.parametrize("mask", [np.ones((2, 3, 20, 16)), np.ones((2, 3, 20, 15), bool), np.ones((2, 20, 16), bool)])
def test_other_masks_are_refused(mask):
    with pytest.raises(ValueError, match="mask: got"):
        metrics.psnr(*videos(), mask)


def test_change_needs_two_frames():
    x, y = videos(f=1)
    for call in (lambda: metrics.temporal_difference_error(x, y), lambda: metrics.flicker(x)):
        with pytest.raises(ValueError, match="at least 2"):
            call()


# -- intervals -------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30), st.integers(0, 3))
def test_bootstrap_encloses_its_mean_within_the_values(values, seed):
    estimate = metrics.bootstrap(values, samples=500, seed=seed)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert estimate.n == len(values)
    assert estimate.value == pytest.approx(np.mean(values), abs=slack)
    assert min(values) - slack <= estimate.ci_low <= estimate.ci_high <= max(values) + slack
    assert estimate == metrics.bootstrap(values, samples=500, seed=seed)


def test_bootstrap_covers_the_truth_about_95_times_in_100():
    random = np.random.default_rng(0)
    estimates = [metrics.bootstrap(random.normal(5, 2, 40), samples=1000, seed=i) for i in range(400)]
    covered = np.mean([e.ci_low <= 5 <= e.ci_high for e in estimates])
    assert 0.91 < covered < 0.97
    width = np.mean([e.ci_high - e.ci_low for e in estimates])
    assert width == pytest.approx(2 * 1.96 * 2 / np.sqrt(40), rel=0.08)


def test_one_clip_has_no_interval():
    assert metrics.bootstrap([3.0]) == metrics.Estimate(3.0, None, None, 1)


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, np.nan], [1.0, np.inf]])
def test_bootstrap_refuses_what_has_no_mean(values):
    with pytest.raises(ValueError, match="finite numbers"):
        metrics.bootstrap(values)


def test_paired_sees_a_small_difference_that_single_intervals_hide():
    random = np.random.default_rng(0)
    clips = random.normal(20, 3, 30)
    better = clips + 0.5 + 0.1 * random.standard_normal(30)
    difference = metrics.paired(better, clips)
    assert difference.ci_low > 0.4 and difference.ci_high < 0.6
    assert metrics.bootstrap(clips).ci_high > metrics.bootstrap(better).ci_low
    with pytest.raises(ValueError, match="same clips"):
        metrics.paired(better, clips[:-1])


def test_smaller_pictures_are_means_of_what_a_pixel_covers_and_masks_their_majority():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 3, 8, 6, 3), np.uint8)
    mask = rng.random((2, 3, 8, 6)) < 0.5
    small, some = metrics.smaller(frames, (4, 3)), metrics.smaller(mask, (4, 3))
    assert small.shape == (2, 3, 4, 3, 3) and some.shape == (2, 3, 4, 3) and some.dtype == torch.bool
    assert small[1, 2, 3, 1].numpy() == pytest.approx(frames[1, 2, 6:, 2:4].mean((0, 1)) / 255, abs=1e-6)
    assert bool(some[0, 1, 2, 0]) == (mask[0, 1, 4:6, :2].sum() >= 2)
    with pytest.raises(ValueError, match="got pictures of 8×6, expected multiples of 3×3"):
        metrics.smaller(frames, (3, 3))
