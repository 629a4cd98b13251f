import base64
import inspect
import io
import re

import matplotlib as mpl
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rainlab.show import figures, plot

mpl.use("Agg")


def pictures(n=4, size=(8, 6), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *size, 3), dtype=np.uint8)


def drawn(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


EXAMPLES = {
    "stack": lambda: plot.stack({"MiB": [{"s": i, "value": 2.0 * i} for i in range(3)]}, "s", title="Memory"),
    "histogram": lambda: plot.histogram(np.arange(9.0), {"p50": 4.0}, "ms", "frames"),
    "sheet": lambda: plot.sheet({"truth": pictures(), "generated": pictures(3)}, title="Sheet", columns=["a", "b"]),
    "strip": lambda: plot.strip(pictures(), labels=[f"t = {t}" for t in range(4)]),
    "curves": lambda: plot.curves({"stage 1": [{"step": i, "loss": 1 / (1 + i)} for i in range(9)]}, smooth=2),
    "bars_with_ci": lambda: plot.bars_with_ci([{"metric": "psnr", "value": 20, "model": "a"}], units={"psnr": "dB"}),
    "attention": lambda: plot.attention({"block 0": np.eye(8)}, np.repeat([249, 499, 749, 999], 2)),
    "staircase": lambda: plot.staircase(8, 4),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_figures_are_closed_named_alike_and_leave_no_trace(name):
    before = dict(mpl.rcParams)
    figure = EXAMPLES[name]()
    assert isinstance(figure, Figure) and plt.get_fignums() == []
    assert re.fullmatch(r"<Figure size \d+x\d+ with \d+ Axes>", repr(figure))
    assert repr(figure) == repr(EXAMPLES[name]())
    assert dict(mpl.rcParams) == before
    np.testing.assert_array_equal(drawn(figure), drawn(EXAMPLES[name]()))


def test_every_picture_function_is_tried_above():
    returning_figures = {
        name for name in plot.__all__ if inspect.signature(getattr(plot, name)).return_annotation is Figure
    }
    assert returning_figures == set(EXAMPLES)
    assert plot.save is figures.save and plot.use_style is figures.use_style


# -- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 3])
def test_a_sheet_shows_every_pixel_as_a_square(scale):
    stack = pictures(2)
    screen = drawn(plot.sheet({"": stack}, scale=scale))
    for picture in stack:
        wanted = picture.repeat(scale, 0).repeat(scale, 1)
        windows = np.lib.stride_tricks.sliding_window_view(screen, wanted.shape)[:, :, 0]
        assert (windows == wanted).all((-1, -2, -3)).sum() == 1


def test_a_sheet_says_its_rows_columns_and_title():
    figure = plot.sheet({"truth": pictures(), "ours": pictures()}, columns=["now", "then"], title="Sheet")
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words == ["truth", "ours", "now", "then"]
    assert figure.axes[0].get_title(loc="left") == "Sheet"
    (axes,) = plot.sheet({"": pictures(3), " ": pictures(2)}, scale=1, names=list("abcde")).axes
    named = {text.get_text(): text.get_position() for text in axes.texts if text.get_text().strip()}
    assert [*named] == list("abcde") and named["a"][1] == named["c"][1] < named["d"][1] == named["e"][1]
    assert named["a"][0] == named["d"][0] < named["b"][0]


@pytest.mark.parametrize(
    "rows",
    [
        {},
        {"a": pictures(), "b": pictures(size=(8, 8))},
        {"a": pictures() / 255},
        {"a": pictures()[0]},
        {"a": pictures(n=0)},
    ],
)
def test_sheet_refuses_what_is_no_sheet(rows):
    with pytest.raises(ValueError, match="got"):
        plot.sheet(rows)


def test_a_sheet_without_labels_leaves_no_room_for_them():
    rows = [pictures(), pictures()]
    bare, labelled = plot.sheet(rows), plot.sheet({"a": rows[0], "b": rows[1]})
    assert bare.get_figwidth() < labelled.get_figwidth() and bare.get_figheight() == labelled.get_figheight()
    assert np.array_equal(bare.axes[0].images[0].get_array(), labelled.axes[0].images[0].get_array())


def test_strip_refuses_more_labels_than_frames():
    with pytest.raises(ValueError, match="got 5 labels, expected at most 4"):
        plot.strip(pictures(4), labels=list("abcde"))


def test_flow_colours_follow_direction_and_speed():
    right, down, left, up, still = plot.flow_rgb(np.array([[[1, 0], [0, 1], [-1, 0], [0, -1], [0, 0.0]]]))[0]
    assert right.tolist() == [255, 0, 0] and left.tolist() == [0, 255, 255] and still.tolist() == [255, 255, 255]
    assert down[1] == 255 and down[2] == 0 and up[2] == 255 and up[1] == 0
    slow = plot.flow_rgb(np.array([[[1.0, 0]]]), limit=4.0)[0, 0]
    assert slow.tolist() == [255, 191, 191]
    assert plot.flow_rgb(np.zeros((2, 3, 4, 5, 2))).shape == (2, 3, 4, 5, 3)


def test_near_is_brighter_than_far():
    colours = plot.depth_rgb(np.linspace(0, 1, 20)[None])
    assert colours.shape == (1, 20, 3) and colours.dtype == np.uint8
    assert (np.diff(colours.astype(int).sum(-1)) > 0).all()
    assert colours[0, 0].max() < 10


@pytest.mark.parametrize(("size", "scale"), [((8, 6), 4), ((7, 5), 1), ((7, 5), 3)])
def test_video_plays_the_frames(size, scale):
    shades = np.array([20, 120, 220], np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (3, *size, 3))
    shown = plot.video(frames, fps=5, scale=scale)
    mime, metadata = shown._repr_mimebundle_()
    assert metadata["image/webp"] == {"width": size[1] * scale, "height": size[0] * scale}
    assert shown.data == plot.video(frames, fps=5, scale=scale).data
    film = PIL.Image.open(io.BytesIO(base64.b64decode(mime["image/webp"])))
    assert (film.n_frames, film.info["loop"], film.size) == (3, 0, (size[1] * scale, size[0] * scale))
    for number, shade in enumerate(shades):
        film.seek(number)
        assert abs(np.asarray(film.convert("RGB")).mean() - shade) < 4 and film.info["duration"] == 200


# -- charts ----------------------------------------------------------------------------------------------------------


def test_curves_draw_the_rows_and_smooth_without_lag():
    rows = [{"step": 10 * i, "loss": 5.0 + i} for i in range(20)]
    (line,) = plot.curves({"a": rows}).axes[0].lines
    np.testing.assert_array_equal(line.get_xydata(), [(row["step"], row["loss"]) for row in rows])
    smooth, raw = plot.curves({"a": rows}, smooth=4).axes[0].lines
    np.testing.assert_array_equal(raw.get_ydata(), line.get_ydata())
    np.testing.assert_allclose(smooth.get_ydata()[4:-4], line.get_ydata()[4:-4])
    assert smooth.get_ydata()[0] > raw.get_ydata()[0]


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12), st.integers(0, 20))
def test_the_running_mean_stays_within_the_values(values, reach):
    mean = plot._running_mean(np.array(values), reach)
    assert mean.shape == (len(values),)
    assert min(values) - 1e-9 <= mean.min() and mean.max() <= max(values) + 1e-9
    if reach == 0:
        np.testing.assert_allclose(mean, values)


@pytest.mark.parametrize("smooth", [0.9, -1])
def test_curves_smooth_over_a_number_of_rows(smooth):
    with pytest.raises(ValueError, match="number of rows"):
        plot.curves({"a": [{"step": 0, "loss": 1}]}, smooth=smooth)


def test_bars_show_values_and_intervals():
    rows = [
        {"metric": "psnr", "value": 22.5, "ci_low": 21.0, "ci_high": 24.0, "model": "ours"},
        {"metric": "psnr", "value": 23.99, "ci_low": None, "ci_high": None, "model": "reported"},
        {"metric": "gain", "value": -0.5, "ci_low": -0.75, "ci_high": -0.25, "model": "ours"},
    ]
    psnr, gain = plot.bars_with_ci(rows, units={"psnr": "dB"}).axes
    assert [(bar.get_x(), bar.get_width()) for bar in psnr.patches] == [(0, 22.5), (0, 23.99)]
    assert psnr.patches[0].get_facecolor() != psnr.patches[1].get_facecolor()
    (whisker,) = psnr.lines
    assert list(whisker.get_xdata()) == [21.0, 24.0]
    assert [text.get_text() for text in psnr.texts] == ["22.5", "23.99"]
    assert (psnr.get_title(loc="left"), psnr.get_xlabel(), gain.get_xlabel()) == ("psnr", "dB", "")
    assert [label.get_text() for label in psnr.get_yticklabels()] == ["ours", "reported"]
    assert psnr.get_xlim()[0] == 0 and gain.get_xlim()[0] < -0.5
    psnr, gain = plot.bars_with_ci(rows, alike=True).axes
    assert psnr.get_xlim() == gain.get_xlim()


def test_attention_maps_share_a_scale_and_show_the_groups():
    maps = {"a": np.full((6, 6), 0.1), "b": np.eye(6) * 0.5}
    first, second, bar = plot.attention(maps, [9, 9, 5, 5, 2, 2]).axes
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0, 0.5)
    assert sorted({line.get_xdata()[0] for line in first.lines} - {0}) == [1.5, 3.5]
    assert [label.get_text() for label in first.get_xticklabels()] == ["9", "5", "2"]
    with pytest.raises(ValueError, match=r"map 'a': got shape \(6, 6\), expected \(4, 4\)"):
        plot.attention(maps, [1, 1, 2, 2])


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 4), st.sampled_from([2, 4, 5]), st.integers(1, 3), st.integers(1, 7))
def test_staircase_draws_algorithm_1(size, groups, calls, ticks):
    turn, life = plot.staircase(size * groups, groups, calls, ticks).axes
    step = 1000 / groups
    tops: dict[float, float] = {}
    for bar in turn.patches:
        tops[bar.get_x()] = max(bar.get_y() + bar.get_height(), tops.get(bar.get_x(), 0))
    np.testing.assert_allclose([tops[x] for x in sorted(tops)], np.repeat(np.arange(1, groups + 1) * step, size))
    assert len([text for text in turn.texts if not text.get_text()]) == groups * calls + 2  # arrows
    cells = [patch for patch in life.patches if isinstance(patch, Rectangle)]
    assert len(cells) == ticks * (ticks + 1) // 2
    shown = [text.get_text() for text in life.texts[:-1]]
    expected = [
        ["clean", *(f"{step * k:g}" for k in range(1, groups + 1))][-tick:][: tick - max(0, tick - groups - 1)]
        for tick in range(1, ticks + 1)
    ]
    assert shown == [word for row in expected for word in row]


def test_staircase_wants_equal_groups():
    with pytest.raises(ValueError, match="p to divide K"):
        plot.staircase(16, 3)


def test_a_stack_shows_each_quantity_from_nought():
    rows = [{"minutes": i, "value": 5.0 + i} for i in range(4)]
    figure = plot.stack({"memory, MiB": rows, "frames/s": rows[:2]}, "minutes", title="soak")
    above, below = figure.axes
    assert [axes.get_title(loc="left") for axes in (above, below)] == ["memory, MiB", "frames/s"]
    assert above.get_ylim()[0] == 0 and above.get_ylim()[1] > 8 and below.get_xlabel() == "minutes"
    assert above.lines[0].get_ydata().tolist() == [5, 6, 7, 8]


def test_a_histogram_counts_all_values_and_names_its_marks():
    figure = plot.histogram(np.array([10.0, 10, 20, 30]), {"p50": 15.0}, "ms", "frames")
    (axes,) = figure.axes
    assert sum(bar.get_height() for bar in axes.patches) == 4 and axes.get_xlim()[0] <= 0.5
    assert axes.get_title(loc="left") == "p50 15" and axes.lines[0].get_xdata()[0] == 15
    assert not plot.histogram(np.array([])).axes[0].lines
