"""torch.export → the graph dialect."""

from tileir.frontends.torch_export.importer import import_program
from tileir.frontends.torch_export.recipe import (
    export_decode,
    export_draft_decode,
    fake_draft,
    fake_hf,
    load_hf,
)

__all__ = [
    "export_decode",
    "export_draft_decode",
    "fake_draft",
    "fake_hf",
    "import_program",
    "load_hf",
]
