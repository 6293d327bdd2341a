"""The three dialects: graph, tile, engine."""


def load_dialects() -> None:
    """Register all three with the current context."""
    from tileir.dialect.engine import Engine
    from tileir.dialect.graph import Graph
    from tileir.dialect.tile import Tile
    from tileir.mlir import announce_dialect

    for dialect in (Graph, Tile, Engine):
        announce_dialect(dialect.DIALECT_NAMESPACE)
        dialect.load(reload=True)
