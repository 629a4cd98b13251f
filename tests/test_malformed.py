"""Damaged videos, pictures, manifests and weights: a clear error for each, no crash, no hang, nothing executed."""

import random
from pathlib import Path

import malformed
import pytest


@pytest.mark.parametrize("count", [90, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_files_are_read_or_refused_with_their_name(count):
    outcomes, faults = malformed.fuzz(count)
    assert not faults, "\n".join(faults)
    assert sum(outcomes.values()) == count
    refused = {kind for kind, outcome in outcomes if outcome == "refused"}
    assert refused == {*malformed.KINDS}  # of each kind there were some that had to be


def test_the_fuzzer_tells_a_crash_a_hang_and_an_unclear_error(tmp_path, monkeypatch):
    """It would: a reader that dies, one that sleeps, one that lets a KeyError through, and code that runs."""
    reader = """
def read(kind, path):
    number = int(path.stem)
    if number == 2:
        os._exit(9)
    if number == 4:
        time.sleep(60)
    if number == 5:
        {}["x"]
    if number == 8:
        os.system(f"touch {path.parent}/executed")


"""
    script = Path(malformed.__file__).read_text("utf-8").replace("if __name__", reader + "if __name__")
    (tmp_path / "worker.py").write_text(script)
    monkeypatch.setattr(malformed, "__file__", str(tmp_path / "worker.py"))
    monkeypatch.setattr(malformed, "LIMIT", 1.0)
    outcomes, faults = malformed.fuzz(9)
    assert [fault.partition(":")[0] for fault in faults[:3]] == ["picture.png 2", "picture.webp 4", "picture.gif 5"]
    assert "status 9" in faults[0] and "more than 1 s" in faults[1] and "KeyError" in faults[2]
    assert faults[3:] == ["code in a file was executed"] and sum(outcomes.values()) == 9


def test_damage_is_the_same_every_time():
    good = bytes(range(256)) * 8
    one, again, other = (malformed.mutate(good, random.Random(seed)) for seed in ("0, 5", "0, 5", "0, 6"))
    assert one == again != other and good not in (one, other)
