"""Lets `lit test` find the configuration at the root."""

import os

lit_config.load_config(  # noqa: F821
    config,  # noqa: F821
    os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lit.cfg.py"),
)
