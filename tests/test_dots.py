"""Landmarks drawn for readers: every point, ring and number is where it belongs."""

import numpy as np
import pytest

from rainlab.data import landmarks
from rainlab.show import dots

POINTS = np.random.default_rng(0).uniform(0.2, 0.8, (26, 2))


def test_points_stand_where_they_are_in_their_colours():
    picture = np.full((8, 8, 3), 90, np.uint8)
    figure = dots.numbered(
        {"a": {"points": POINTS, "picture": picture}, "b": {"points": POINTS * 0.5, "numbers": False}}
    )
    first, second = figure.axes
    drawn = first.collections[0]
    np.testing.assert_allclose(drawn.get_offsets(), POINTS)
    nose = landmarks.PARTS["nose"].start
    np.testing.assert_allclose(drawn.get_facecolors()[nose, :3] * 255, landmarks.COLOURS["nose"])
    assert [text.get_text() for text in first.texts] == [str(i) for i in range(26)] and not second.texts
    assert first.images[0].get_extent() == [0, 1, 1, 0] and first.yaxis_inverted()
    assert tuple(axes.get_title(loc="left") for axes in figure.axes) == ("a", "b")


def test_panels_show_their_face_or_all_the_same_part():
    panels = {"a": {"points": POINTS}, "b": {"points": POINTS * 0.5}}
    own, alike = (dots.numbered(panels, alike=alike).axes for alike in (False, True))
    assert own[0].get_xlim() == pytest.approx(tuple(2 * x for x in own[1].get_xlim()))
    assert alike[0].get_xlim() == alike[1].get_xlim() and alike[0].get_ylim() == alike[1].get_ylim()
    for axes, points in zip(own, (POINTS, POINTS * 0.5), strict=True):
        assert axes.get_xlim()[0] < points[:, 0].min() and points[:, 1].max() < axes.get_ylim()[0]


def test_a_film_of_points_is_pale_where_they_are():
    points = np.array([[[0.25, 0.5], [0.75, 0.125]], [[0.75, 0.5], [0.75, 0.125]]])
    film = dots.pictures(points, (16, 32), radius=0.5)
    assert film.shape == (2, 16, 32, 3) and film.dtype == np.uint8
    for picture, (x, y) in zip(film, ((8, 8), (24, 8)), strict=True):
        bright = np.argwhere(picture.max(-1) > 60)
        around = [(r - i, c - j) for r, c in ((2, 24), (y, x)) for i in (0, 1) for j in (0, 1)]
        assert sorted(map(tuple, bright.tolist())) == sorted(around)
    wide = dots.pictures(points, (16, 32), radius=2)
    assert (wide >= film).all() and (wide > film).any() and (wide[0, 8, 8] == (0xCF, 0xE8, 0xFF)).all()


def test_groups_are_marked():
    figure = dots.numbered({"a": {"points": np.tile(POINTS, (3, 1))[:68], "groups": ((1, 2), (4,))}})
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), POINTS[[1, 2]])
    np.testing.assert_allclose(axes.collections[0].get_offsets(), POINTS[[4]])  # a circle around one alone


def test_other_shapes_are_refused():
    for panels in ({}, {"a": {"points": np.zeros((26, 3))}}):
        with pytest.raises(ValueError, match=r"expected \(n, 2\), one panel at least"):
            dots.numbered(panels)
    with pytest.raises(ValueError, match="not finite in b; leave them out"):
        dots.numbered({"a": {"points": POINTS}, "b": {"points": np.where(POINTS > 0.7, np.nan, POINTS)}})
