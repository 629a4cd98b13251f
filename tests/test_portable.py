"""The same results with other kernels: a child process under the smallest instruction set stands in for another
processor. torch picks its kernels by ATEN_CPU_CAPABILITY, oneDNN by ONEDNN_MAX_CPU_ISA; processors other than x86
ignore the second."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rainlab.data import pose
from rainlab.data.studio.body import render, split_seeds

HERE = Path(__file__).parent
SMALLEST = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "1"}
AGAIN = "test_schedule test_unet test_guider test_vae test_metrics test_studio".split()
LOOP = "test_stream.py::test_published_offline_loop"
CHILD = """
import sys, numpy, torch, test_portable
assert torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX"), torch.backends.cpu.get_cpu_capability()
numpy.save(sys.argv[1], test_portable.frames())
"""


def smallest(*command, **options):
    done = subprocess.run([sys.executable, *command], env=os.environ | SMALLEST, text=True,
                          capture_output=True, **options)  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.mark.skipif(os.environ.get("ATEN_CPU_CAPABILITY") == "default", reason="this is the child")
def test_goldens_schedule_and_metrics_hold_with_the_smallest_kernels():
    files = [f"{name}.py" for name in AGAIN]
    assert " passed" in smallest("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, LOOP, cwd=HERE)


def frames() -> np.ndarray:
    """Studio frames and condition pictures, uint8."""
    seeds = split_seeds("test", 6)
    clips = render(seeds, seeds + 300, frames=6, size=(96, 72))
    return np.stack([clips.frames.numpy(), pose.draw(clips.keypoints, (96, 72)).numpy()])


def test_the_studio_renders_the_same_with_the_smallest_kernels(tmp_path):
    """To one grey level in 99.9 % of the values: what the studio promises across processors."""
    smallest("-c", CHILD, str(tmp_path / "frames.npy"), cwd=HERE)
    other = np.load(tmp_path / "frames.npy").astype(int)
    assert (np.abs(other - frames()) <= 1).mean() >= 0.999
