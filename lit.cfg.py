"""lit's configuration: `lit test` from the root."""

import os
import sys

root = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, root)

from test.lit_format import ForkingFormat  # noqa: E402

config.name = "tileir"  # noqa: F821
config.suffixes = [".mlir"]  # noqa: F821
config.test_source_root = os.path.join(root, "test")  # noqa: F821
config.test_exec_root = os.path.join(root, "lit-out")  # noqa: F821
config.test_format = ForkingFormat(execute_external=False)  # noqa: F821
bin_folder = os.path.dirname(sys.executable)
# Plain words: lit's own %t would eat the first letter of %tileir-opt.
config.substitutions += [  # noqa: F821
    (r"\btileir-opt\b", os.path.join(bin_folder, "tileir-opt")),
    (r"\bfilecheck\b", os.path.join(bin_folder, "filecheck")),
]
