"""What importing loads, seen in a process of its own."""

import subprocess
import sys


def loaded_by(*modules: str) -> set[str]:
    """The names of all modules that are there once these are imported."""
    program = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())
