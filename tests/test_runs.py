import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rainlab import files, provenance, runs

VALUES = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9) | st.text(max_size=5)
CONFIGS = st.dictionaries(st.text(min_size=1, max_size=5), VALUES | st.lists(VALUES, max_size=3), max_size=4)


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """An empty project of its own for every test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAINLAB_RUNS", raising=False)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "rainlab"\n')
    return tmp_path


def finished(name="eval", value=1.0, config=None, date=None):
    run = runs.open_run(name, config or {"seed": 0}, version=1)
    run.record("psnr", value)
    run.finish()
    if date:
        file = run.path / "provenance.json"
        files.write_json(file, json.loads(file.read_text()) | {"date": date})
    return run


# -- identity --------------------------------------------------------------------------------------------------------


@given(CONFIGS, st.integers(0, 5))
def test_id_depends_on_content_only(config, version):
    first = runs.run_id("a", config, version)
    backwards = dict(reversed(config.items()))
    assert runs.run_id("a", backwards, version, {}) == first
    assert runs.run_id("a", json.loads(json.dumps(config)), version) == first
    assert runs.run_id("a", config | {"another key": 1}, version) != first
    assert runs.run_id("a", config, version + 1) != first
    assert runs.run_id("b", config, version)[1:] != first[1:]
    assert runs.run_id("a", config, version, {"vae": "1234"}) != first


def test_equal_numbers_and_sequences_give_the_same_id():
    @dataclasses.dataclass
    class Config:
        guidance: float
        size: tuple[int, int]

    same = [{"guidance": 2, "size": [64, 48]}, {"size": (64, 48), "guidance": np.float32(2.0)}, Config(2.0, (64, 48))]
    assert len({runs.run_id("a", config, 1) for config in same}) == 1
    assert runs.run_id("a", {"guidance": 2.5, "size": [64, 48]}, 1) != runs.run_id("a", same[0], 1)


def test_id_is_the_same_on_every_machine():
    text = rb'{"config":{"lr":0.001,"size":[64,48],"\u00e4":null},"inputs":{"vae":"v-12"},"name":"a","version":3}'
    expected = "a-" + hashlib.sha256(text).hexdigest()[:10]
    assert runs.run_id("a", {"size": (64, 48), "lr": 1e-3, "ä": None}, 3, {"vae": "v-12"}) == expected


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"folder": Path("data")}, TypeError, "hash of its content"),
        ({"lr": float("nan")}, ValueError, "nan"),
        ({"x": {1, 2}}, TypeError, "got {1, 2}"),
    ],
)
def test_config_without_a_canonical_form_is_refused(config, error, message):
    with pytest.raises(error, match=message):
        runs.run_id("a", config, 1)


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "a b"])
def test_names_that_are_no_folder_names_are_refused(name):
    with pytest.raises(ValueError, match="run name: got"):
        runs.open_run(name, {}, 1)


# -- places ----------------------------------------------------------------------------------------------------------


def test_root_is_found_from_below_and_skips_other_projects(project, monkeypatch):
    inner = project / "notebooks" / "other"
    inner.mkdir(parents=True)
    (inner / "pyproject.toml").write_text('[project]\nname = "other"\n')
    monkeypatch.chdir(inner)
    assert files.root() == project
    assert runs.folder() == project / "runs"


def test_root_without_a_project_is_here(project, monkeypatch):
    (project / "pyproject.toml").unlink()
    (project / "sub").mkdir()
    monkeypatch.chdir(project / "sub")
    assert files.root() == project / "sub"


def test_the_environment_names_the_folder(project, monkeypatch):
    monkeypatch.setenv("RAINLAB_RUNS", str(project / "elsewhere"))
    assert finished().path.parent == project / "elsewhere"
    assert runs.find("eval") is not None


# -- atomic writing --------------------------------------------------------------------------------------------------


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(project):
    file = project / "deep" / "result.txt"
    with files.atomic_path(file) as temporary:
        assert (temporary.parent, temporary.suffix) == (file.parent, ".txt")
        temporary.write_text("old")
    with pytest.raises(RuntimeError, match="stop"), files.atomic_path(file) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError("stop")
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]


def test_a_killed_process_leaves_no_half_file(project):
    code = (
        "import os; from rainlab import files\n"
        "with files.atomic_path('result.txt') as file: file.write_text('half'); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])})
    assert done.returncode == 9
    assert not (project / "result.txt").exists()


def test_a_list_is_written_one_element_a_line(project):
    files.write_json("rows.json", [{"a": np.float64(0.5)}, {"a": None}])
    assert (project / "rows.json").read_text() == '[\n{"a": 0.5},\n{"a": null}\n]\n'
    with pytest.raises(ValueError, match="nan"):
        files.write_json("rows.json", [float("nan")])
    assert json.loads((project / "rows.json").read_text())[0] == {"a": 0.5}


# -- a run's life ----------------------------------------------------------------------------------------------------


def test_record_finish_and_read_back():
    run = runs.open_run("eval", {"size": (64, 48)}, version=2, inputs={"weights": "abc"})
    assert not run.finished
    run.record("psnr", np.float32(20.5), 20, 21.5, 8, "rainlab-1", model="ours", frames=16)
    run.record("psnr", 18, model="copy")
    assert run.metrics() == run.finish().metrics() == runs.get(run.id).metrics()
    assert run.metrics()[0] == {
        "metric": "psnr", "value": 20.5, "ci_low": 20, "ci_high": 21.5, "n": 8, "protocol": "rainlab-1",
        "model": "ours", "frames": 16,
    }  # fmt: skip
    assert run.value("psnr", model="copy")["value"] == 18
    again = runs.get(run.id)
    assert (again.id, again.name, again.version, again.inputs) == (run.id, "eval", 2, {"weights": "abc"})
    assert again.config == {"size": [64, 48]}
    assert runs.run_id(again.name, again.config, again.version, again.inputs) == run.id


def test_an_unfinished_run_is_resumed_in_the_same_folder():
    run = runs.open_run("train", {"steps": 5}, version=1)
    (run.path / "step2.txt").write_text("weights")
    run.record("loss", 0.5)
    again = runs.open_run("train", {"steps": 5}, version=1)
    assert again.path == run.path and not again.finished
    assert (again.path / "step2.txt").read_text() == "weights"
    assert again.metrics() == [] and runs.find("train") is None
    with pytest.raises(FileNotFoundError, match=run.id):
        runs.get(run.id)


def test_killed_between_the_files_of_finish_is_unfinished(monkeypatch):
    run = runs.open_run("eval", {}, version=1)
    run.record("psnr", 1)
    monkeypatch.setattr(runs, "made_with", lambda project, seconds: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.finish()
    assert (run.path / "metrics.json").exists()
    assert not run.finished and runs.find("eval") is None


def test_a_finished_run_is_not_overwritten_until_cleared():
    run = finished(value=1.0)
    (run.path / "model.safetensors").write_text("weights")
    again = runs.open_run("eval", {"seed": 0}, version=1)
    for write in (lambda: again.record("psnr", 2.0), again.finish):
        with pytest.raises(FileExistsError, match=r"run\.clear\(\)"):
            write()
    assert again.value("psnr")["value"] == 1.0
    again.clear()
    assert not again.finished and [file.name for file in again.path.iterdir()] == ["config.json"]
    again.record("psnr", 2.0)
    assert again.finish().value("psnr")["value"] == 2.0


def test_the_same_row_recorded_again_replaces():
    run = runs.open_run("eval", {}, version=1)
    for value in (1.0, 2.0):
        run.record("psnr", value, model="a", seed=0)
    run.record("psnr", 3.0, seed=1, model="a")
    run.record("psnr", 4.0, protocol="other", seed=1, model="a")
    assert [row["value"] for row in run.metrics()] == [2.0, 3.0, 4.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_not_recorded(value):
    run = runs.open_run("eval", {}, version=1)
    with pytest.raises(ValueError, match="got .*'psnr'.*expected finite"):
        run.record("psnr", value)
    assert run.metrics() == []


def test_value_wants_exactly_one_row():
    run = runs.open_run("eval", {}, version=1)
    for model in ("a", "b"):
        run.record("psnr", 1, model=model)
    for metric, labels in (("psnr", {}), ("psnr", {"model": "c"}), ("ssim", {}), ("psnr", {"seed": None})):
        with pytest.raises(KeyError, match=r"expected one.*psnr"):
            run.value(metric, **labels)


def test_provenance_names_no_place_user_or_host():
    text = (finished().path / "provenance.json").read_text()
    provenance = json.loads(text)
    assert provenance["run"].startswith("eval-") and provenance["date"].endswith("+00:00")
    assert set(provenance) == {"run", "date", "seconds", "commit", "dirty", "versions", "hardware"}
    assert set(provenance["versions"]) == {"rainlab", "python", "torch", "numpy", "cuda"}
    assert set(provenance["hardware"]) == {"system", "cpu", "instructions", "cores", "torch_threads", "gpu"}
    assert provenance["hardware"]["instructions"] == torch.backends.cpu.get_cpu_capability()
    for private in (str(Path.home()), str(Path.cwd()), os.sep + "tmp", platform.node()):
        assert private not in text


def test_provenance_is_of_the_code_wherever_it_is_started(project):
    here = provenance.code(Path(runs.__file__).parents[1])
    there = json.loads((finished().path / "provenance.json").read_text())  # made in an empty folder
    assert {name: there[name] for name in here} == here
    assert provenance.code(Path(runs.__file__).parent) == {"commit": None, "dirty": None}  # inside, not itself one


def test_provenance_knows_the_commit_and_whether_the_package_differs(project, monkeypatch):
    monkeypatch.setattr(runs, "SOURCE", project)

    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(["git", *who, *words], check=True, capture_output=True, text=True).stdout.strip()

    def made(seed):
        return json.loads((finished(config={"seed": seed}).path / "provenance.json").read_text())

    (project / "rainlab").mkdir()
    (project / "rainlab" / "a.py").write_text("1")
    git("init", "-q")
    git("add", "rainlab")
    git("commit", "-qm", "first")
    first = made(1)
    assert (first["commit"], first["dirty"]) == (git("rev-parse", "HEAD"), False)
    (project / "rainlab" / "a.py").write_text("2")
    assert made(2)["dirty"] is True
    git("commit", "-qam", "second")
    run = runs.open_run("eval", {"seed": 3}, 1)
    (project / "rainlab" / "a.py").write_text("3")  # while it runs
    assert json.loads((run.finish().path / "provenance.json").read_text())["dirty"] is False


# -- find and publish ------------------------------------------------------------------------------------------------


def test_find_takes_the_newest_that_matches():
    old = finished(config={"preset": "tiny", "seed": 0}, date="2026-01-01T00:00:00+00:00")
    new = finished(config={"preset": "tiny", "seed": 1}, date="2026-01-02T00:00:00+00:00")
    newest = finished(config={"preset": "small", "size": (64, 48)}, date="2026-01-03T00:00:00+00:00")
    finished(name="eval-other", config={"preset": "tiny"}, date="2026-01-04T00:00:00+00:00")
    os.utime(old.path / "provenance.json")  # file times say nothing
    assert runs.find("eval").id == newest.id
    assert runs.find("eval", preset="tiny").id == new.id
    assert runs.find("eval", preset="tiny", seed=0).id == old.id
    assert runs.find("eval", size=(64, 48)).id == newest.id
    assert runs.find("eval", preset="huge") is None
    assert runs.find("eval", sed=None) is None
    assert runs.find("ev") is None


def test_find_orders_runs_of_the_same_second_by_id():
    date = "2026-01-01T00:00:00+00:00"
    ids = [finished(config={"seed": seed}, date=date).id for seed in range(5)]
    assert runs.find("eval").id == max(ids)


def test_publish_copies_all_but_weights_and_readers_prefer_the_local_run(project):
    run = finished(value=1.0)
    for beside in (runs.VALUES, runs.PICTURES, "model.safetensors"):
        (run.path / beside).write_text("{}")
    copy = runs.publish(run)
    assert copy == project / "figures" / "runs" / run.id == runs.publish(run)
    assert sorted(file.name for file in copy.iterdir()) == sorted([*runs.FILES, runs.VALUES, runs.PICTURES])
    newer = finished(config={"seed": 9}, date="9999-01-01T00:00:00+00:00")
    runs.publish(newer)
    newer.clear()
    assert runs.find("eval").id == run.id, "the local one goes before a newer published one"
    assert runs.find("eval").path == run.path
    assert runs.find("eval", seed=9).path == runs.published() / newer.id
    run.clear()
    assert runs.get(run.id).path == copy and runs.get(run.id).value("psnr")["value"] == 1.0
    assert runs.open_run("eval", {"seed": 0}, 1).finished is False, "a published copy has no weights to go on with"


def test_a_published_copy_is_not_cleared_and_an_unfinished_run_not_published():
    run = finished()
    runs.publish(run)
    run.clear()
    with pytest.raises(ValueError, match="published copy"):
        runs.get(run.id).clear()
    with pytest.raises(ValueError, match="unfinished"):
        runs.publish(run)


def test_a_measurement_is_made_once_and_read_again():
    calls = []

    def make(run):
        calls.append(run.id)
        run.record("psnr", 1.0)

    given = "eval", {"seed": 0}, 1
    with pytest.raises(FileNotFoundError, match="nothing recorded for .* of preset 'tiny'.*preset=tiny record=yes"):
        runs.made(make, False, "tiny", *given)
    with pytest.raises(FileNotFoundError, match="no finished run eval-"):
        runs.made(make, False, None, *given)
    run = runs.made(make, True, "tiny", *given)
    assert run.finished and run.value("psnr")["value"] == 1.0
    assert {runs.made(make, record, "tiny", *given).id for record in (True, False)} == {run.id} and calls == [run.id]
    assert runs.made(make, True, None, *given, {"model": "x"}).id != run.id and len(calls) == 2


def test_a_measurement_that_fails_is_made_again():
    def fail(run):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        runs.made(fail, True, None, "eval", {}, 1)
    assert runs.made(lambda run: run.record("psnr", 2.0), True, None, "eval", {}, 1).finished
