"""What made an output: the libraries' versions and the git commit, written beside every one."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any


def provenance() -> dict[str, Any]:
    """Library versions and the git commit, where there is one."""
    libraries = ("ray", "torch", "torchvision", "numpy", "pyarrow", "obstore", "simplejpeg", "opencv-python-headless")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in libraries}},
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # slim images have no git
        return None
    return found.stdout.strip() or None
