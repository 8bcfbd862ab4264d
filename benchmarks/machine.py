"""On what was it measured?"""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_name() -> str:
    """The processor as the system names it."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text("utf-8").splitlines() if about.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
