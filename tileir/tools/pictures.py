"""Where pictures are drawn: matplotlib, without a display."""

from pathlib import Path
from typing import Any

from tileir.errors import TileirError


def pyplot_for(path: Path) -> Any:
    """matplotlib.pyplot, to save a PNG or SVG. Raises TileirError without matplotlib, or for another suffix."""
    if path.suffix not in (".png", ".svg"):
        raise TileirError(f"{path}: no picture is made of that kind", hint="name .png or .svg")
    try:
        import matplotlib
    except ImportError:
        raise TileirError("matplotlib is missing", hint="pip install 'tileir[trace]'") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot
