"""A protocol's name stands for its code: what moves no number may change, nothing else."""

import importlib
import pkgutil
import re

import pytest

from rainlab import measure
from rainlab.measure import protocols

CODE = '''"""What it measures."""

SCALE = 2.0  # a remark


def error(x, y):
    """The error."""
    if not len(x):
        raise ValueError(f"got {len(x):d} numbers")
    return SCALE * sum(abs(a - b) for a, b in
                       zip(x, y, strict=True)), "sum"
'''


def test_committed_digests_are_those_of_the_code():
    """Where this fails: if a number moves, give the protocol a new name; else write the new digest into DIGESTS."""
    assert {name: protocols.digest(name) for name in protocols.MODULES} == protocols.DIGESTS


def test_names_are_those_that_runs_are_recorded_with():
    found = set()
    for module in pkgutil.iter_modules(measure.__path__):
        name = getattr(importlib.import_module(f"{measure.__name__}.{module.name}"), "PROTOCOL", "")
        if re.search(r"-\d+$", name):  # what it does is not said by the name
            assert protocols.MODULES[name][0] == module.name
            found.add(name)
    assert found == protocols.MODULES.keys()


def told(folder, code):
    path = folder / "code.py"
    path.write_text(code)
    return protocols.told(path)


def test_remarks_texts_and_layout_do_not_count(tmp_path):
    same = CODE.replace("What it measures.", "Other words.").replace("  # a remark", "").replace("The error", "It")
    same = same.replace("got {len(x):d} numbers", "{len(x)} numbers were {'given'}").replace(
        "in\n                       zip", "in zip"
    )
    assert told(tmp_path, CODE) == told(tmp_path, same) and "got" not in told(tmp_path, CODE)


@pytest.mark.parametrize(("old", "new"), [("2.0", "2.5"), ("abs", "max"), ('"sum"', '"mean"'), ("not len", "len")])
def test_whatever_could_move_a_number_counts(tmp_path, old, new):
    assert told(tmp_path, CODE) != told(tmp_path, CODE.replace(old, new))


def test_texts_that_go_on_over_lines_count(tmp_path):
    assert told(tmp_path, 'x = (\n    "a"\n    "b"\n)\n').split() == ["x", "=", "(", '"a"', '"b"', ")"]
