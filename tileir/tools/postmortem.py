"""The wait-for graph of a hang, as a picture."""

from pathlib import Path
from typing import Any

import networkx as nx

from tileir.errors import TileirError
from tileir.runtime.report import Group, groups_of, roots_of, waits_for
from tileir.tools.pictures import pyplot_for

MOST_GROUPS = 40
COLOURS = {"root": "#d62728", "consumer": "#9ecae1", "loader": "#c7e9c0"}


def wait_graph(dump: dict[str, Any]) -> nx.DiGraph:
    """Groups of waits, "root" for those that wait for no other; an edge goes from who waits to whom."""
    groups = groups_of(dump)
    roots = set(roots_of(dump, groups))
    graph = nx.DiGraph()
    for group in groups:
        graph.add_node(group, root=group in roots)
    for group in groups:
        graph.add_edges_from((group, other) for other in waits_for(dump, group, groups))
    return graph


def picture(dump: dict[str, Any], path: Path) -> None:
    """Draw the graph, earliest waits on top; PNG or SVG by the path's suffix.

    Raises TileirError without matplotlib, for another suffix, and for a dump without waits.
    """
    pyplot, graph = pyplot_for(path), wait_graph(dump)
    if not graph:
        raise TileirError("no warp has reported a wait", hint="there is nothing to draw")
    graph = graph.subgraph(list(graph)[:MOST_GROUPS])
    places = {g: (0.0 if g.role == "consumer" else 1.0, -i) for i, g in enumerate(graph)}
    figure, axes = pyplot.subplots(figsize=(14, 1 + 0.8 * len(graph)), layout="constrained")
    for group, at in places.items():
        axes.annotate(
            _label(group),
            at,
            ha="center",
            va="center",
            fontsize=9,
            bbox={"boxstyle": "round", "facecolor": _colour(graph, group), "edgecolor": "black"},
        )
    for group, other in graph.edges:
        bent = {
            "arrowstyle": "->",
            "connectionstyle": "arc3,rad=0.25",
            "shrinkA": 25,
            "shrinkB": 25,
        }
        axes.annotate("", places[other], places[group], arrowprops=bent)
    axes.set(xlim=(-0.6, 1.6), ylim=(-len(graph) + 0.4, 0.6))
    axes.set_title(f"{dump['device']}: who waits for whom; red waits for nobody")
    axes.axis("off")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _colour(graph: nx.DiGraph, group: Group) -> str:
    if graph.nodes[group]["root"]:
        return COLOURS["root"]
    return COLOURS["consumer" if group.role == "consumer" else "loader"]


def _label(group: Group) -> str:
    return (
        f"{group.warps} × {group.role}, {len(group.sms)} SMs\nrow {group.row} ({group.body}), epoch {group.epoch}\n"
        f"{group.wait}"
    )
