"""What a run was made with: code, versions and hardware."""

import os
import platform
import re
import resource
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import torch


def version() -> str | None:
    """rainlab's installed version; None where it is only a folder in the path."""
    try:
        return metadata.version("rainlab")
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """What the code runs on."""
    return {
        "rainlab": version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda,
    }


def hardware(project: Path) -> dict[str, str | int | None]:
    """What the code runs on, continued: processor, cores, threads, GPU. `project`: folder to start commands in.

    ``instructions``: the widest that torch computes with, such as AVX2; processors of one name differ in them.
    """
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(project),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def code(project: Path) -> dict[str, str | bool | None]:
    """The commit of a git repository, and whether the package differs from it; None where that is not known.

    A package that is installed without its repository has no commit, not even one of a repository around it.
    """
    if not (project / ".git").exists():
        return {"commit": None, "dirty": None}
    changes = _command(project, "git", "status", "--porcelain", "--", "rainlab")
    return {
        "commit": _command(project, "git", "rev-parse", "HEAD"),
        "dirty": None if changes is None else changes != "",
    }


def made_with(project: Path, seconds: float) -> dict:
    """How and on what a run was made: date, versions, hardware. No path, user or host name: it is committed.

    Args:
        project: folder to start commands in. seconds: what the run took.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),  # of this process: a resumed run doesn't count what was interrupted
        "versions": versions(),
        "hardware": hardware(project),
    }


def peak_bytes() -> int:
    """The most memory that this process has held, in bytes."""
    if sys.platform == "linux":  # getrusage's figure begins with that of the process that started this one
        held = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        if held:
            return int(held[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _command(folder: Path, *words: str) -> str | None:
    """What a command prints, run in `folder`; None if it fails or isn't there."""
    try:
        return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu(project: Path) -> str:
    """The processor's model name."""
    if sys.platform == "linux":
        names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return names[0] if names else platform.machine()
    if sys.platform == "darwin":
        return _command(project, "sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor()
