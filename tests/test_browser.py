"""The demo in Chromium, as a user has it: in JupyterLab, and in a window of its own. Counts and order, no speed."""

import io
import os
import time

import numpy as np
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright", reason="the dev extra is not installed")
import browser as harness  # noqa: E402

pytestmark = pytest.mark.skipif(
    harness.chromium() is None, reason="needs Chromium in the PATH (Debian: apt install chromium)"
)


@pytest.fixture(scope="module")
def chromium():
    with harness.browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def folder():
    with harness.workplace() as place:
        yield place


@pytest.fixture(scope="module")
def jupyterlab(folder):
    with harness.lab(folder) as address:
        yield address


@pytest.fixture(scope="module")
def opened(chromium, jupyterlab, folder):
    """The notebook with all its cells run; every test goes on where the one before it left the panel."""
    page = harness.Page(chromium, jupyterlab, folder)
    page.opened()
    page.run_all()
    return page


@pytest.fixture
def page(opened):
    """The page, streaming a dragged skeleton; the test may leave nothing in the browser's console."""
    opened.choose("driver", "dragged skeleton")
    more(opened)
    yield opened
    assert not opened.complaints, opened.complaints


def more(page, count=4):
    """Wait for so many more frames."""
    before = page.frames()
    page.until(lambda: page.frames() >= before + count)


def through(page):
    """Wait until frames are shown of which every part was made after now."""
    more(page, 2 * page.ask("panel.live.settings['window']") + 8)


def picture_file(colour):
    data = io.BytesIO()
    Image.new("RGB", (50, 80), colour).save(data, "png")
    return data.getvalue()


def test_frames_are_shown_and_change(page):
    first = page.pixels("live")
    more(page, 8)
    now = page.pixels("live")
    assert first.std() > 10 and now.shape == first.shape and np.abs(now - first).max() > 0
    numbers = page.numbers()
    assert numbers["shown"].endswith(" frames/s") and "p95" in numbers["motion to photon"] and page.message() == ""
    shown, made = page.ask("(lambda now: [now.shown, now.made])(panel.live.statistics())")
    assert 0 < shown <= made


def test_a_dragged_wrist_moves_the_arm_on_its_side(page):
    through(page)
    before, joint = page.pixels("live"), page.ask("panel._driver.points[4, :2].tolist()")
    page.drag("right wrist", -10, -28)
    page.until(lambda: page.ask("panel._driver.points[4, :2].tolist()") != joint)
    through(page)
    change = np.abs(page.pixels("live") - before).mean((0, 2))
    left, right = np.split(change, [len(change) // 2])[:2]
    assert left.mean() > 2 * right.mean()  # the character faces us: its right is on our left


def test_joints_can_be_moved_by_keys(page):
    before = page.ask("panel._driver.points[7, 1]")
    page.joint("left wrist").focus()
    page.page.keyboard.press("ArrowUp")
    page.until(lambda: page.ask("panel._driver.points[7, 1]") < before)


def test_a_slider_acts_while_it_streams(page):
    page.slide("ω", 5)
    page.until(lambda: page.ask("panel.live.settings['guidance']") == 2.5)
    more(page)
    page.slide("ω", 5, "ArrowLeft")
    page.until(lambda: page.ask("panel.live.settings['guidance']") == 2.0)


def test_a_smaller_window_begins_the_stream_anew(page):
    page.choose("K frames", "8")
    page.until(lambda: page.ask("[panel.live.settings['window'], panel.live.state]") == [8, "running"])
    more(page)
    page.choose("K frames", "16")
    page.until(lambda: page.ask("panel.live.settings['window']") == 16)


def test_pause_holds_the_picture(page):
    page.click("pause")
    page.until(lambda: page.message() == "Paused." and not page.ask("len(panel.live._flying)"))
    page.page.wait_for_timeout(300)  # until what was sent last is drawn
    before, number = page.pixels("live"), page.frames()
    page.page.wait_for_timeout(1000)
    assert np.array_equal(page.pixels("live"), before) and page.frames() == number
    page.click("start")
    more(page)


def test_reset_begins_anew(page):
    page.until(lambda: page.ask("panel.live.statistics().sampled") > 30)
    page.click("reset")
    page.until(lambda: page.ask("panel.live.statistics().sampled") < 30)
    more(page)


def test_keys_walk(page):
    page.choose("driver", "keyboard walk")
    page.page.locator(".rl-hint").get_by_text("click here").click()
    page.page.keyboard.down("ArrowRight")
    page.until(lambda: page.ask("panel._driver._state['x']") > 0.05)
    page.page.keyboard.up("ArrowRight")
    page.until(lambda: not page.ask("list(panel._driver._keys)"))


def test_a_character_is_picked_and_a_picture_uploaded_or_dropped(page):
    def shows(colour):
        return lambda: np.abs(page.pixels("reference").mean((0, 1)) - colour).max() < 4

    seen = page.pixels("reference")
    page.page.locator(".rl-gallery button").nth(3).click()
    page.until(lambda: np.abs(page.pixels("reference") - seen).mean() > 3)
    page.page.locator(".rl-gallery input").set_input_files(
        {"name": "grey.png", "mimeType": "image/png", "buffer": picture_file((120, 120, 120))}
    )
    page.until(shows((120, 120, 120)))
    assert page.message() == "Reference: grey.png"
    page.page.evaluate(
        """bytes => { const files = new DataTransfer();
        files.items.add(new File([new Uint8Array(bytes)], "blue.png", { type: "image/png" }));
        const drop = new DragEvent("drop", { dataTransfer: files, bubbles: true });
        document.querySelector(".rl-panel").dispatchEvent(drop); }""",
        list(picture_file((30, 60, 200))),
    )
    page.until(shows((30, 60, 200)))
    more(page)
    page.page.locator(".rl-gallery button").nth(0).click()
    page.until(lambda: not shows((30, 60, 200))())


def test_camera_pictures_make_the_round_trip(page):
    page.choose("driver", "camera")
    page.until(lambda: "yolox_l.onnx" in page.message())
    skeleton = page.pixels("driver")
    page.until(lambda: page.ask("panel._driver.received") > 3)
    page.until(lambda: np.abs(page.pixels("driver") - skeleton).mean() > 5)  # the fake camera's test pattern
    seen = "lambda picture, it=drivers.Skeleton(panel.size).points + [20, 0, 0]: it"
    page.ask(f"setattr(panel._driver, '_detect', {seen})")
    page.until(lambda: page.ask("panel.live._condition[:, :40].any().item() is False"))  # the body stands to the right
    page.choose("driver", "dragged skeleton")
    page.until(lambda: not page.ask("panel.view.filming"))


def test_an_error_is_shown_and_a_restarted_kernel_streams_again(page):
    page.ask("setattr(panel._driver, 'draw', None)")
    page.until(lambda: "TypeError" in page.message())
    assert page.ask("[panel.live.state, sum(t.is_alive() for t in panel.live._threads)]") == ["failed", 0]
    page.choose("driver", "studio motion")
    page.click("start")
    more(page)
    process = page.ask("__import__('os').getpid()")
    page.menu("Kernel", "Restart Kernel and Run All Cells…")
    page.page.locator(".jp-Dialog").get_by_role("button", name="Confirm Kernel Restart").click()
    page.until(lambda: not os.path.exists(f"/proc/{process}"))
    page.page.wait_for_timeout(500)
    page.shown()
    page.until(lambda: page.ask("panel.live.statistics().shown") > 0)
    assert page.ask("sum(t.name.startswith('rainlab-') for t in __import__('threading').enumerate())") == 3


def test_a_closed_tab_leaves_no_thread(page):
    page.page.close()
    end = time.monotonic() + 60
    while page.ask("sum(thread.is_alive() for thread in panel.live._threads)"):
        assert time.monotonic() < end
    assert page.ask("panel.live.state") == "stopped"


def test_a_window_of_its_own_without_code(chromium):
    with harness.workplace() as folder, harness.window(folder) as address:
        page = harness.Page(chromium, address, folder)
        page.shown()
        page.until(lambda: page.pixels("live").std() > 10)
        first = page.pixels("live")
        page.drag("right wrist", -10, -28)
        page.until(lambda: np.abs(page.pixels("live") - first).mean() > 1)
        assert page.page.locator(".rl-panel").count() == 1
        assert "import torch" not in page.page.locator("body").inner_text()
        assert all("ERR_NAME_NOT_RESOLVED" in said for said in page.complaints)  # fonts of voila
