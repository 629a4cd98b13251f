"""The demo notebook in a real browser (Chromium through Playwright): what browser tests, bench and soak drive.

    python tests/browser.py --minutes 30    the soak: random hands for half an hour; writes a run of what it measured
    python tests/browser.py --pictures      the panel in light and dark theme, into figures/

Server and browser stay on the loopback interface. A kernel is asked through its own connection file, which the server
leaves in a folder of ours.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jupyter_client.blocking import BlockingKernelClient
from PIL import Image
from playwright.sync_api import Browser, Locator, sync_playwright
from tqdm.auto import tqdm

from rainlab import runs
from rainlab.files import root
from rainlab.measure.endless import drift
from rainlab.show import figures

VERSION = 1  # raised when the soak does something else
NOTEBOOK = "50_stream_demo.ipynb"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
EVERY = 10.0  # seconds between two samples of the soak
SLOPES = ("resident", "browser_heap", "p50_per_window_frame")  # recorded by the hour; K changes the latency itself
CONTROLS = ["ω", "temporal"]  # sliders that random hands move


def chromium() -> str | None:
    """Where the browser is; None where there is none."""
    return next((path for name in CHROMIUM if (path := shutil.which(name))), None)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Chromium without a window, with a camera that films a test pattern."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield opened
        opened.close()


@contextlib.contextmanager
def served(*command: str, **environment: str) -> Iterator[str]:
    """Run a Jupyter server (`python -m command …`) on a free port of the loopback interface; yields its address.

    Raises RuntimeError with its log if it ends or does not listen in a minute.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        words = [sys.executable, "-m", *(word.format(port=port) for word in command)]
        process = subprocess.Popen(words, cwd=root(), env=os.environ | environment, stdout=log, stderr=log)
        try:
            end = time.monotonic() + 60
            while process.poll() is None and not _listens(port) and time.monotonic() < end:
                time.sleep(0.1)
            if process.poll() is not None or not _listens(port):
                log.seek(0)
                raise RuntimeError(f"{' '.join(command)}: the server did not come up:\n{log.read()[-3000:]}")
            yield address
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as knock:
        return knock.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder with the demo notebook, unexecuted, in which nothing of the user's is touched."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        notebook = json.loads((root() / "notebooks" / NOTEBOOK).read_text("utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"], cell["execution_count"] = [], None
        (folder / NOTEBOOK).write_text(json.dumps(notebook), "utf-8")
        (folder / "pyproject.toml").write_text('[project]\nname = "rainlab"\n')  # what the kernel writes stays here
        yield folder


def places(folder: Path) -> dict[str, str]:
    """Environment of a server whose settings, runtime files and runs lie in a folder."""
    return {"JUPYTER_RUNTIME_DIR": f"{folder}/runtime", "JUPYTER_CONFIG_DIR": f"{folder}/config",
            "RAINLAB_RUNS": f"{folder}/runs", "RAINLAB_FIGURES": f"{folder}/figures"}  # fmt: skip


@contextlib.contextmanager
def lab(folder: Path) -> Iterator[str]:
    """JupyterLab on a folder; yields the address of the demo notebook in it."""
    token = secrets.token_hex(16)
    news = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false"}', "utf-8")
    command = ("jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port={port}", f"--IdentityProvider.token={token}",
               "--allow-root", f"--ServerApp.root_dir={folder}",
               f"--LabServerApp.workspaces_dir={folder}/workspaces",
               f"--LabServerApp.user_settings_dir={folder}/settings")  # fmt: skip
    with served(*command, **places(folder)) as address:
        yield f"{address}/lab/tree/{NOTEBOOK}?token={token}"


@contextlib.contextmanager
def window(folder: Path) -> Iterator[str]:
    """The demo without code cells, as `make demo` serves it; yields its address."""
    command = ("voila", NOTEBOOK, "--no-browser", "--Voila.ip=127.0.0.1", "--port={port}")
    with served(*(str(folder / word) if word == NOTEBOOK else word for word in command), **places(folder)) as address:
        yield address


class Page:
    """The demo's page, as hands and eyes have it.

    ``complaints`` collects what the browser's console calls an error.
    """

    def __init__(self, opened: Browser, address: str, folder: Path, width: int = 1280, height: int = 1250):
        self.page, self.folder = opened.new_page(viewport={"width": width, "height": height}), folder
        self.complaints: list[str] = []
        self.page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address, timeout=120_000)

    # -- JupyterLab ------------------------------------------------------------------------------------------------

    def opened(self) -> None:
        """Wait until the notebook is open and its kernel idle."""
        self.page.wait_for_selector(".jp-Notebook", timeout=60_000)
        self.page.get_by_text("| Idle").first.wait_for(timeout=120_000)

    def menu(self, *names: str) -> None:
        """Click through JupyterLab's menus."""
        self.page.get_by_role("menuitem", name=names[0], exact=True).click()
        for name in names[1:]:
            self.page.locator(".lm-Menu-item").get_by_text(name, exact=True).click()

    def theme(self, name: str) -> None:
        """Choose a theme: "JupyterLab Light", "JupyterLab Dark"."""
        self.menu("Settings", "Theme", name)

    def run_all(self) -> None:
        """Run all cells; returns when the panel is to be seen."""
        self.menu("Run", "Run All Cells")
        self.shown()

    # -- the panel -------------------------------------------------------------------------------------------------

    def shown(self) -> None:
        """Wait for the panel."""
        self.page.wait_for_selector(".rl-gallery button", timeout=120_000)
        self.page.locator(".rl-panel").scroll_into_view_if_needed()

    def pixels(self, which: str) -> np.ndarray:
        """What a canvas shows ("live", "driver", "reference"): int (h, w, 3)."""
        height, width, values = self.page.evaluate(
            """label => { const c = document.querySelector(`.rl-picture canvas[aria-label="${label}"]`);
            const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
            let s = ""; for (let i = 0; i < d.length; i += 4) s += String.fromCharCode(d[i], d[i + 1], d[i + 2]);
            return [c.height, c.width, btoa(s)]; }""",
            which,
        )
        return np.frombuffer(base64.b64decode(values), np.uint8).reshape(height, width, 3).astype(int)

    def numbers(self) -> dict[str, str]:
        """The numbers that the panel shows."""
        texts = self.page.locator(".rl-numbers span").all_inner_texts()
        return dict(zip(texts[::2], texts[1::2], strict=True))

    def message(self) -> str:
        """What the panel says."""
        return self.page.locator(".rl-message").inner_text()

    def click(self, name: str) -> None:
        """Press the button of that name."""
        self.page.locator("button.jupyter-button").get_by_text(name, exact=True).click()

    def choose(self, label: str, option: str) -> None:
        """Choose an option of a drop-down list."""
        self.page.locator(f".widget-dropdown:has(label:text-is('{label}')) select").select_option(label=option)

    def slide(self, label: str, presses: int, key: str = "ArrowRight") -> None:
        """Move a slider by the keyboard."""
        self.page.locator(f".widget-slider:has(label:text-is('{label}')) .noUi-handle").focus()
        for _ in range(presses):
            self.page.keyboard.press(key)

    def joint(self, name: str) -> Locator:
        """The handle of a joint."""
        return self.page.locator(f".rl-handles circle[aria-label^='{name}']")

    def drag(self, name: str, right: float, down: float) -> None:
        """Drag a joint by so many pixels of the stream, by hand."""
        box, per = self.joint(name).bounding_box(), self.page.locator(".rl-handles").bounding_box()["width"] / 96
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + per * right, y + per * down, steps=5)
        self.page.mouse.up()

    def until(self, condition: Any, seconds: float = 60.0) -> None:
        """Wait until it holds. TimeoutError with what the panel says."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"not within {seconds} s; the panel says {self.message()!r}, {self.numbers()}")
            self.page.wait_for_timeout(100)

    # -- the kernel ------------------------------------------------------------------------------------------------

    def ask(self, expression: str) -> Any:
        """The value of an expression in the kernel, which knows `panel`; it has to be something that JSON can hold."""
        with ThreadPoolExecutor(1) as apart:  # both libraries drive an event loop
            return apart.submit(_ask, self.folder / "runtime", expression).result()

    def frames(self) -> int:
        """Number of the last frame that was sent."""
        return self.ask("panel.live._number")


def _ask(folder: Path, expression: str) -> Any:
    """Ask over the shell channel alone: the other one is full of frames."""
    files = sorted(folder.glob("kernel-*.json"), key=lambda path: path.stat().st_mtime)
    client = BlockingKernelClient(connection_file=str(files[-1]))
    client.load_connection_file()
    client.start_channels(iopub=False, stdin=False, hb=False, control=False)
    try:
        asked = client.execute("", silent=True, user_expressions={"it": f"__import__('json').dumps({expression})"})
        while (reply := client.get_shell_msg(timeout=60))["parent_header"].get("msg_id") != asked:
            pass
        it = reply["content"]["user_expressions"]["it"]
        if it["status"] != "ok":
            raise RuntimeError(f"{expression}: {it['ename']}: {it['evalue']}")
        return json.loads(ast.literal_eval(it["data"]["text/plain"]))
    finally:
        client.stop_channels()


STATE = """{
    "resident": __import__("psutil").Process().memory_info().rss / 2**20,
    "threads": __import__("threading").active_count(),
    "alive": sum(thread.is_alive() for thread in panel.live._threads),
    **{name: getattr(now, name) for name in ("state", "made", "shown", "engine_rate", "shown_rate", "capacity")},
    "p50": now.latency(0.5), "p95": now.latency(0.95), "window": panel.live.settings["window"],
    "p50_per_window_frame": (now.latency(0.5) or 0) / panel.live.settings["window"],
} if (now := panel.live.statistics()) else None"""


def anything(page: Page, hands: random.Random) -> str:
    """Do one thing that a user might do, by lot; returns what."""
    act = hands.choice(["slider", "joint", "character", "driver", "reset", "pause", "filter", "structure", "keys"])
    if act == "slider":
        page.slide(hands.choice(CONTROLS), hands.randint(1, 5), hands.choice(["ArrowRight", "ArrowLeft"]))
    elif act == "joint":
        page.choose("driver", "dragged skeleton")
        page.joint("left wrist").wait_for()
        page.drag(hands.choice(["left wrist", "right wrist", "left elbow", "nose"]), *hands.choices(range(-9, 10), k=2))
    elif act == "character":
        page.page.locator(".rl-gallery button").nth(hands.randrange(7)).click()
    elif act == "driver":
        page.choose("driver", hands.choice(["studio motion", "dragged skeleton", "keyboard walk", "camera"]))
    elif act == "reset":
        page.click("reset")
    elif act == "pause":
        page.click("pause")
        page.page.wait_for_timeout(1000)
        page.click("start")
    elif act == "filter":
        page.choose("pixels", hands.choice(["smooth", "nearest"]))
    elif act == "structure":
        page.choose("K frames", hands.choice(["8", "16"]))
    else:
        page.choose("driver", "keyboard walk")
        page.page.locator(".rl-hint").get_by_text("click here").click()
        page.page.keyboard.press(hands.choice(["ArrowLeft", "ArrowRight", "a", "d", "Space"]), delay=500)
    return act


def soak(minutes: float, seed: int = 0) -> runs.Run:
    """Stream for so long under random hands, and record every EVERY seconds how it is.

    The run "soak" holds a row for each metric and moment (seconds since the start), and the browser's memory with it.
    Raises RuntimeError where the stream stopped or a thread died. A finished run of this content is returned as it is.
    """
    run = runs.open_run("soak", {"minutes": minutes, "seed": seed, "every": EVERY, "preset": "small"}, VERSION)
    if run.finished:
        return run
    hands = random.Random(seed)
    with run.lock(), workplace() as folder, lab(folder) as address, browser() as opened:
        run.clear()
        page = Page(opened, address, folder)
        page.opened()
        page.run_all()
        page.until(lambda: page.ask("panel.live.statistics().shown") > 0, 120)
        start, acts = time.monotonic(), 0
        for moment in tqdm(np.arange(EVERY, 60 * minutes + 1, EVERY), "soak", unit="sample"):
            while time.monotonic() < start + moment - 3:
                anything(page, hands)
                acts += 1
                page.page.wait_for_timeout(hands.randint(500, 3000))
            page.page.wait_for_timeout(max(0.0, 1000 * (start + moment - time.monotonic())))
            now = page.ask(STATE)
            if now["state"] != "running" or now["alive"] != 3:
                raise RuntimeError(f"after {moment:.0f} s the stream is not running: {now}; {page.message()!r}")
            heap = page.page.evaluate("performance.memory.usedJSHeapSize") / 2**20
            for metric, value in (now | {"browser_heap": heap}).items():
                if isinstance(value, int | float):
                    run.record(metric, value, seconds=float(moment))
        each = {name: [row["value"] for row in run.metrics() if row["metric"] == name] for name in SLOPES}
        for name, values in each.items():
            a_minute = [float(np.mean(some)) for some in np.array_split(values, max(2, int(minutes)))]
            settled = a_minute[len(a_minute) // 5 :]  # caches fill in the beginning
            run.record(f"{name}_slope", *drift(settled, spacing=1 / 60))
        rates = {name: np.array([row["value"] for row in run.metrics() if row["metric"] == name])
                 for name in ("shown_rate", "engine_rate")}  # fmt: skip
        both = rates["engine_rate"] > 0
        run.record("shown_over_engine", float(np.median(rates["shown_rate"][both] / rates["engine_rate"][both])))
        run.record("events", acts)
        run.record("complaints", len(page.complaints))
        run.note(complaints=page.complaints[:20])
        return run.finish()


def pictures() -> None:
    """The panel with a raised arm, in both themes, as figures."""
    with workplace() as folder, lab(folder) as address, browser() as opened:
        page = Page(opened, address, folder)
        page.opened()
        page.run_all()
        page.until(lambda: page.frames() > 0)
        page.drag("right wrist", -10, -28)
        page.joint("nose").focus()
        for theme in ("light", "dark"):
            page.theme(f"JupyterLab {theme.capitalize()}")
            before = page.frames()
            page.until(lambda before=before: page.frames() > before + 60)
            shot = page.page.locator(".jp-OutputArea-output:has(.rl-panel)").first.screenshot()
            figures.save(Image.open(io.BytesIO(shot)), f"stream_demo_{theme}", f"The live demo's panel in JupyterLab, "
                         f"{theme} theme: the right wrist was dragged up", notebook=NOTEBOOK.partition(".")[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", action="store_true")
    arguments = parser.parse_args()
    if chromium() is None:
        sys.exit(f"no browser: looked for {', '.join(CHROMIUM)} in PATH; on Debian: apt install chromium")
    if arguments.pictures:
        pictures()
    else:
        print(soak(arguments.minutes, arguments.seed).path)
