"""Runs: one folder per training, evaluation or benchmark, named by the hash of all that determines its result.

    run = open_run("stage1", config={"preset": "tiny", "seed": 0}, version=1, inputs={"vae": vae_run.id})
    if not run.finished:
        run.record("loss", 0.23, n=32, preset="tiny")
        run.finish()
    find("stage1", preset="tiny").value("loss")

`runs/stage1-3f2a90c1d4/` then holds `config.json`, `metrics.json` (long format: one row per number) and
`provenance.json` beside whatever the run saved. Final runs' three files, and `values.json` with what each clip scored,
are copied to `figures/runs/` and committed, so that notebooks find them in a fresh clone. Tables and figures read
nothing else.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rainlab.files import atomic_path, plain, root, write_json
from rainlab.provenance import code, made_with

FILES = ("config.json", "metrics.json", "provenance.json")  # written in this order: the last one makes a run finished
SOURCE = Path(__file__).parents[1]  # the code that runs, wherever it was started
VALUES = "values.json"  # of a measurement: measure -> one value a clip
PICTURES = "pictures.png"  # of a measurement: what weights made that do not come with the repository


def folder() -> Path:
    """Where runs are made: the environment variable RAINLAB_RUNS, else `runs/` in the project root."""
    return Path(os.environ.get("RAINLAB_RUNS") or root() / "runs")


def published() -> Path:
    """Where the JSON files of final runs are committed: `figures/runs/` in the project root."""
    return root() / "figures" / "runs"


def run_id(name: str, config: Any, version: int, inputs: dict[str, str] | None = None) -> str:
    """`name-hash`; the hash is the first ten hex digits of the sha256 of all four as canonical JSON.

    2 and 2.0, a list and a tuple, and any order of keys give the same id.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"run name: got {name!r}, expected letters, digits, '_', '.', '-': it names a folder")
    identity = {"name": name, "config": config, "version": version, "inputs": inputs or {}}
    numbers = json.dumps(plain(identity))
    same = json.loads(numbers, parse_float=lambda text: int(x) if (x := float(text)).is_integer() else x)
    text = json.dumps(same, sort_keys=True, separators=(",", ":"))
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


class Run:
    """A run's folder and the numbers recorded for it. Made by `open_run`, `get` and `find`."""

    def __init__(self, path: Path, name: str, config: dict, version: int, inputs: dict[str, str]):
        self.path, self.id = path, path.name
        self.name, self.config, self.version, self.inputs = name, config, version, inputs
        self._rows: dict[str, dict] = {}  # keyed by what tells rows apart
        self._opened = time.perf_counter()
        self._code = None if self.finished else code(SOURCE)  # now: files edited while it runs are not what runs

    def __repr__(self) -> str:
        return f"Run({self.id!r}, {'finished' if self.finished else 'unfinished'})"

    @property
    def finished(self) -> bool:
        """Whether all its files are written: provenance is the last."""
        return (self.path / FILES[-1]).is_file()

    def lock(self) -> Any:
        """Context manager: one process at a time works on this run; the lock ends with its process."""
        from filelock import FileLock

        return FileLock(self.path / ".lock")

    def record(
        self,
        metric: str,
        value: float,
        ci_low: float | None = None,
        ci_high: float | None = None,
        n: int | None = None,
        protocol: str | None = None,
        **labels: str | float | bool | None,
    ) -> None:
        """Add one row, in memory until `finish`: `run.record("psnr", *estimate, PROTOCOL, model="tiny")`.

        The same metric, protocol and labels again replace the row: a notebook cell can be run twice.
        Raises ValueError if `value` or a bound is not finite, FileExistsError if the run is finished.
        """
        self._refuse_if_finished()
        numbers = {"value": float(value), "ci_low": ci_low, "ci_high": ci_high, "n": n}
        key = json.dumps(plain([metric, protocol, labels]), sort_keys=True)
        self._rows[key] = plain({"metric": metric} | numbers | {"protocol": protocol} | labels)

    def metrics(self) -> list[dict]:
        """All rows, in the order recorded."""
        if self.finished:
            return json.loads((self.path / "metrics.json").read_text("utf-8"))
        return list(self._rows.values())

    def value(self, metric: str, **labels: str | float | bool | None) -> dict:
        """The only row of this metric with these labels. Raises KeyError unless there is exactly one."""
        rows = [row for row in self.metrics() if row["metric"] == metric]
        hits = [row for row in rows if all(key in row and row[key] == label for key, label in labels.items())]
        if len(hits) == 1:
            return hits[0]
        raise KeyError(
            f"run {self.id}: got {len(hits)} rows for {metric!r} with labels {labels}, expected one; "
            f"rows of this metric: {hits or rows}; metrics here: {sorted({row['metric'] for row in self.metrics()})}"
        )

    def values(self) -> Any:
        """What ``values.json`` holds: what each clip scored. FileNotFoundError where a run keeps no such file."""
        return json.loads((self.path / VALUES).read_text("utf-8"))

    def note(self, **facts: Any) -> None:
        """Keep what the config does not say but a reader should know (a warm start); `finish` adds it to provenance."""
        write_json(self.path / "notes.json", self._notes() | facts)

    def _notes(self) -> dict:
        file = self.path / "notes.json"
        return json.loads(file.read_text("utf-8")) if file.is_file() else {}

    def finish(self) -> "Run":
        """Write config, metrics and provenance. Raises FileExistsError if the run is finished already."""
        self._refuse_if_finished()
        write_json(self.path / "config.json", self._identity())
        write_json(self.path / "metrics.json", list(self._rows.values()))
        made = made_with(root(), time.perf_counter() - self._opened) | self._code
        write_json(self.path / "provenance.json", self._notes() | made | {"run": self.id})
        return self

    def clear(self) -> "Run":
        """Delete everything in the run's folder, checkpoints included, to make the run again."""
        if self.path.parent != folder():
            raise ValueError(f"{self.path} is a published copy: open_run() and clear() the one in {folder()} instead")
        (self.path / "provenance.json").unlink(missing_ok=True)  # first: killed half-way, the run isn't finished
        if self.path.is_dir():
            shutil.rmtree(self.path)
        self._rows.clear()
        self._opened, self._code = time.perf_counter(), code(SOURCE)
        write_json(self.path / "config.json", self._identity())
        return self

    def _identity(self) -> dict:
        return {"name": self.name, "version": self.version, "inputs": self.inputs, "config": self.config}

    def _refuse_if_finished(self) -> None:
        if self.finished:
            raise FileExistsError(
                f"run {self.id} is finished and keeps its numbers: test `run.finished` before computing, "
                "or call `run.clear()` to delete and make it again"
            )


def open_run(name: str, config: Any, version: int, inputs: dict[str, str] | None = None) -> Run:
    """The run of exactly this content in `folder()`, finished or not; its folder is made if missing.

    `config`: dict or dataclass, all that determines the result (with seeds, without places).
    `version`: of the code behind the run; raise it when its results change.
    `inputs`: name -> content hash or run id of what the run reads (weights, data).
    """
    run = Run(folder() / run_id(name, config, version, inputs), name, plain(config), version, plain(inputs or {}))
    if not (run.path / "config.json").is_file():
        write_json(run.path / "config.json", run._identity())
    return run


def get(id: str) -> Run:
    """The finished run of this id, from `folder()` or else from `published()`. Raises FileNotFoundError."""
    for place in (folder(), published()):
        if (place / id / FILES[-1]).is_file():
            return Run(place / id, **json.loads((place / id / "config.json").read_text("utf-8")))
    raise FileNotFoundError(f"no finished run {id} in {folder()} or {published()}: make it first, or correct the id")


def recorded(id: str, preset: str) -> Run:
    """:func:`get` for what a notebook shows; the FileNotFoundError names the command that records it."""
    try:
        return get(id)
    except FileNotFoundError as error:
        raise nothing_recorded(id, preset) from error


def made(
    make: Callable[[Run], Any],
    record: bool,
    preset: str | None,
    name: str,
    config: Any,
    version: int,
    inputs: dict[str, str] | None = None,
) -> Run:
    """The finished run of a measurement: what was recorded; with ``record`` made by ``make(run)`` unless that is done.

    ``preset``: whose measurement it is, for the error where nothing is recorded (:func:`recorded`); None: of none.
    """
    if not record:
        id = run_id(name, config, version, inputs)
        return recorded(id, preset) if preset else get(id)
    run = open_run(name, config, version, inputs)
    with run.lock():
        if not run.finished:
            make(run)
            run.finish()
    return run


def existing(make: Callable[..., Run], *given: Any) -> Run | None:
    """What ``make(*given)`` finds recorded, or None where it says that nothing is."""
    try:
        return make(*given)
    except FileNotFoundError:
        return None


def there(make: Callable[..., Run], preset: Any, names: Iterable[str]) -> dict[str, Run]:
    """Name -> what ``make(preset, name)`` finds recorded, of those where it finds something."""
    found = {name: existing(make, preset, name) for name in names}
    return {name: run for name, run in found.items() if run}


def nothing_recorded(what: str, preset: str) -> FileNotFoundError:
    """The error where a measurement of a preset is shown that nobody made."""
    return FileNotFoundError(
        f"nothing recorded for {what} of preset {preset!r}: measure it with the notebook's parameter record = True, or "
        f"train and measure everything with `python -m doit preset={preset} record=yes`"
    )


def find(name: str, /, **config_filter: Any) -> Run | None:
    """The newest finished run of this name whose config has these values; `folder()` goes before `published()`.

    Newest by the date in provenance, not by file times; runs of the same second in order of id. None if there is none.
    """
    wanted = plain(config_filter)
    for place in (folder(), published()):
        hits = []
        for provenance in place.glob(f"{name}-*/{FILES[-1]}"):
            run = get(provenance.parent.name)
            if run.name == name and all(key in run.config and run.config[key] == wanted[key] for key in wanted):
                hits.append((json.loads(provenance.read_text("utf-8"))["date"], run.id, run))
        if hits:
            return max(hits, key=lambda hit: hit[:2])[2]
    return None


def publish(run: Run) -> Path:
    """Copy a finished run, but for weights, to `published()`, where it is committed; returns the folder."""
    if not run.finished:
        raise ValueError(f"run {run.id}: got an unfinished run, expected a finished one: call finish() first")
    target = published() / run.id
    if target != run.path:
        for file in (*FILES, *(name for name in (VALUES, PICTURES) if (run.path / name).is_file())):
            with atomic_path(target / file) as temporary:
                shutil.copyfile(run.path / file, temporary)
    return target
