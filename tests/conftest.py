"""What all test sessions share: one thread, run and figure folders of their own, how notebooks are compared.

    pytest                                                        the unit tests
    pytest --nbval notebooks tests                                and the committed notebooks
    pytest --nbval tests/conftest.py notebooks/10_studio.ipynb    one notebook
"""

import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; notebook kernels and subprocesses inherit it

import torch  # noqa: E402

torch.set_num_threads(1)  # the sessions of pytest-xdist share the cores

try:  # a bare GPU machine has torch and pytest only
    import hypothesis
except ImportError:
    pass
else:
    hypothesis.settings.register_profile("rainlab", deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("rainlab")


def pytest_addoption(parser):
    for mark in ("slow", "paper"):
        parser.addoption(f"--{mark}", action="store_true", help=f"run the tests marked {mark}, too")


def pytest_configure(config):
    folder = tempfile.TemporaryDirectory(prefix="rainlab-tests-")
    config.add_cleanup(folder.cleanup)
    # Registered by hand: the hooks of this file itself are called for tests/ only, not for notebooks/.
    config.pluginmanager.register(EachFileForItself(Path(folder.name)))
    if config.getoption("nbval", False):
        config.pluginmanager.register(CompareNotebooks())


def pytest_collection_modifyitems(config, items):
    reasons = {mark: f"runs with --{mark}" for mark in ("slow", "paper") if not config.getoption(mark)}
    if not torch.cuda.is_available():
        reasons["gpu"] = "needs a CUDA GPU"
    for item in items:
        for mark in reasons.keys() & {marker.name for marker in item.iter_markers()}:
            item.add_marker(pytest.mark.skip(reason=reasons[mark]))


class EachFileForItself:
    """Runs and figures of every test file and notebook go to folders of its own, empty at first.

    So no test touches the project's own, depends on another file's, or sees runs that a fresh clone doesn't have.
    """

    def __init__(self, folder):
        self.folder = folder

    @pytest.hookimpl(tryfirst=True)  # before nbval starts the kernel, which inherits the variables
    def pytest_runtest_setup(self, item):
        for name in ("runs", "figures"):
            os.environ[f"RAINLAB_{name.upper()}"] = str(self.folder / item.path.stem / name)


class CompareNotebooks:
    """nbval compares all outputs but pictures; here also without progress bars and films."""

    def pytest_collectstart(self, collector):
        if collector.__class__.__name__ == "IPyNbFile":
            collector.skip_compare += ("stderr", "image/webp")


@pytest.fixture
def brought(tmp_path, monkeypatch):
    """A folder for published weights that is empty, torch's own in its folder hub."""
    monkeypatch.setenv("RAINLAB_WEIGHTS", str(tmp_path))
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    yield tmp_path
    torch.hub.set_dir(before)
