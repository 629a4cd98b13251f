import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from rainlab.show import figures

mpl.use("Agg")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("RAINLAB_FIGURES", str(tmp_path / "figures"))
    return tmp_path / "figures"


def picture(height=1.0):
    figure = figures.new_figure(2, 1)
    figure.add_subplot().bar([0], [height])
    return figure


def rows(place):
    lines = (place / "index.md").read_text().splitlines()
    assert lines[:4] == ["# Figures", "", "| figure | notebook | runs | caption |", "|---|---|---|---|"]
    return lines[4:]


def test_new_figures_are_closed():
    figures.new_figure(2, 1)
    assert plt.get_fignums() == []


def test_use_style_sets_the_look():
    with mpl.rc_context():
        figures.use_style()
        assert {key: mpl.rcParams[key] for key in figures.STYLE} == figures.STYLE


def test_save_writes_the_picture_and_a_sorted_index(place):
    path = figures.save(picture(), "b_bars", "Two\nbars | one", runs=["eval-0123456789"], notebook="40_table1_quality")
    figures.save(picture(), "a_bars", "First")
    assert path == place / "b_bars.png"
    with Image.open(path) as image:
        assert image.size[0] > 100
        assert "Software" not in image.info and not {"Creation Time", "date:create"} & set(image.info)
    pdf = path.with_suffix(".pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"/Title (b_bars)" in pdf and b"CreationDate" not in pdf
    assert rows(place) == [
        "| [a_bars](a_bars.png) |  |  | First |",
        "| [b_bars](b_bars.png) | [40_table1_quality](../notebooks/40_table1_quality.ipynb) | `eval-0123456789` "
        r"| Two bars \| one |",
    ]


def test_save_keeps_a_picture_as_it_is(place):
    shot = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    path = figures.save(shot, "shot", "A panel – with ω", notebook="50_stream_demo")
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), np.asarray(shot))
    assert not path.with_suffix(".pdf").exists()
    (row,) = rows(place)
    assert row.endswith("| [50_stream_demo](../notebooks/50_stream_demo.ipynb) |  | A panel – with ω |")


def test_saving_again_changes_nothing_and_a_new_caption_its_row_only(place):
    for name in ("a", "b"):
        figures.save(picture(), name, "old")
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    figures.save(picture(), "b", "old")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    figures.save(picture(2.0), "b", "new")
    assert [row.split(" | ")[-1] for row in rows(place)] == ["old |", "new |"]


def test_the_index_drops_deleted_figures_and_ignores_other_pictures(place):
    figures.save(picture(), "a", "first")
    figures.save(picture(), "b", "second")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(place / "photo.png")
    (place / "a.png").unlink()
    figures.save(picture(), "c", "third")
    assert [row.split("]")[0] for row in rows(place)] == ["| [b", "| [c"]


def test_a_figure_saved_meanwhile_by_another_process_keeps_its_row(place, monkeypatch):
    real = figures._index

    def interrupted():
        listing = real()
        monkeypatch.setattr(figures, "_index", real)
        figures.save(picture(), "other", "theirs")
        return listing

    monkeypatch.setattr(figures, "_index", interrupted)
    figures.save(picture(), "mine", "ours")
    assert [row.split("]")[0] for row in rows(place)] == ["| [mine", "| [other"]


def test_a_figure_that_cannot_be_drawn_leaves_everything_as_it_was(place):
    figures.save(picture(), "a", "first")
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    broken = picture()
    broken.axes[0].set_title("$\\frac{$")
    with pytest.raises(ValueError, match="frac"):
        figures.save(broken, "a", "second")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


@pytest.mark.parametrize("name", ["", "a/b", "a.png", "../a"])
def test_names_that_are_no_file_names_are_refused(name):
    with pytest.raises(ValueError, match="figure name: got"):
        figures.save(picture(), name, "")


def test_a_film_plays_forever_and_has_its_line_in_the_index(place):
    frames = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
    path = figures.save_film(frames, "film", "Five frames", ["eval-0"], "00_tour", fps=10, scale=4)
    figures.save(picture(), "a_bars", "First")
    with Image.open(path) as film:
        assert (film.size, film.n_frames, film.info["loop"]) == ((24, 32), 5, 0)
        film.seek(4)
        off = np.abs(np.asarray(film.convert("RGB")).astype(int)[1::4, 1::4] - frames[4]).mean()
        assert film.info["duration"] == 100  # known once a frame is decoded
    assert off < 25  # lossy, but this picture
    assert rows(place)[1] == "| [film](film.webp) | [00_tour](../notebooks/00_tour.ipynb) | `eval-0` | Five frames |"
    before = path.read_bytes()
    figures.save_film(frames, "film", "Five frames", ["eval-0"], "00_tour", fps=10, scale=4)
    assert path.read_bytes() == before
