"""Programs without one of the effects that the engine models: what would a simpler one say?"""

from __future__ import annotations

from dataclasses import replace

from vision.simulator.core.program import Flow, Node, Program


def without_slowdowns(program: Program) -> Program:
    """The program in which what runs at the same time does not slow each other down."""
    return replace(program, slowdowns={})


def without_sharing(program: Program) -> Program:
    """Each flow has its links for itself, however many cross them."""
    return replace(program, nodes=tuple(_alone(node, program) for node in program.nodes))


def _alone(node: Node, program: Program) -> Node:
    if not node.flows:
        return node
    seconds = max(node.seconds, *(_seconds(flow, program) for flow in node.flows))
    return replace(node, seconds=seconds, flows=())


def _seconds(flow: Flow, program: Program) -> float:
    slowest = min((program.links[link] for link in flow.links), default=float('inf'))
    return flow.num_bytes / slowest
