"""What `import rainlab` may cost, and that it makes torchvision usable beside a CPU build of torch."""

import subprocess
import sys
from pathlib import Path

CORE = [
    "config", "runs", "method.stream", "method.checkpoint", "data.studio.body", "data.clips", "data.dataset",
    "training.loop", "training.stages", "measure.metrics",
]  # fmt: skip
NOT_IN_THE_CORE = {
    "diffusers", "transformers", "torchmetrics", "lpips", "matplotlib", "pandas", "av", "IPython", "ipywidgets",
}  # fmt: skip


def python(code: str) -> str:
    """What a fresh interpreter prints; its error message is the failure."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_core_imports_no_heavy_package():
    lines = ["import sys"] + [
        f"import rainlab.{module}; print({module!r}, *sorted({NOT_IN_THE_CORE} & set(sys.modules)))" for module in CORE
    ]
    assert python("\n".join(lines)).splitlines() == CORE


def test_rainlab_alone_imports_neither_torchvision_nor_its_own_modules():
    code = "import sys, rainlab; print(*sorted(m for m in sys.modules if m.startswith(('torchvision', 'rainlab'))))"
    assert python(code).split() == ["rainlab", "rainlab._torchvision"]


def test_torchvision_and_what_needs_it_import_after_rainlab():
    code = "import rainlab, torchvision, torchmetrics.image; print(torchvision.transforms.__name__)"
    assert python(code).strip() == "torchvision.transforms"


def test_rainlab_mends_a_torchvision_import_that_failed_before():
    code = """
try:
    import torchvision
except RuntimeError:
    pass
import rainlab, torchvision
print(torchvision.transforms.__name__)
"""
    assert python(code).strip() == "torchvision.transforms"


def test_works_without_torchvision():
    code = """
import importlib.util
importlib.util.find_spec = lambda name, find=importlib.util.find_spec: None if name == "torchvision" else find(name)
import rainlab
print(rainlab._torchvision._library)
"""
    assert python(code).strip() == "None"
