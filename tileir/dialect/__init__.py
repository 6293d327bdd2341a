"""The three dialects: graph, tile, engine."""


def load_dialects() -> None:
    """Register all three with the current context."""
    # A dialect is loaded with the operations that are defined by then: those of all files.
    from tileir.dialect import (  # noqa: F401
        graph_attention,
        graph_experts,
        graph_rows,
        tile_attend,
        tile_contract,
        tile_map,
    )
    from tileir.dialect.engine import Engine
    from tileir.dialect.graph import Graph
    from tileir.dialect.tile import Tile
    from tileir.mlir import announce_dialect

    for dialect in (Graph, Tile, Engine):
        announce_dialect(dialect.DIALECT_NAMESPACE)
        dialect.load(reload=True)
