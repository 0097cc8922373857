"""What made an output: the libraries' versions and the git commit, written beside every one."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

LIBRARIES = (
    *("ray", "torch", "torchvision", "numpy", "scipy", "pandas", "pyarrow", "obstore"),
    *("simplejpeg", "opencv-python-headless", "pillow"),
)
"""That every job computes, decodes and stores with."""


def provenance(*others: str) -> dict[str, Any]:
    """Versions of LIBRARIES and of `others`, and the git commit, where there is one."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in (*LIBRARIES, *others)}},
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Of the repository that holds this file: where the package is installed into another one's folder, of none."""
    here = Path(__file__)
    try:
        for command in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
            found = subprocess.run(["git", *command], cwd=here.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # slim images have no git
        return None
    return found.stdout.strip()
