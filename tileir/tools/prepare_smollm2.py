"""Puts SmolLM2-135M-Instruct into a folder, as the demo does: python -m tileir.tools.prepare_smollm2 [CACHE]."""

import sys
from pathlib import Path

from tileir.errors import TileirError


def main() -> int:
    """Exit status 1 if the model cannot be had."""
    from tileir.frontends.torch_export.smollm2 import prepare_smollm2

    try:
        print(prepare_smollm2(Path(sys.argv[1] if len(sys.argv) > 1 else ".cache")))
    except TileirError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
