"""The linear relaxation of a CP-SAT model: its whole numbers may be broken, and GLOP solves it."""

from __future__ import annotations

from typing import Any


def relax(model: Any) -> tuple[list[Any], Any]:
    """The linear relaxation of a model whose constraints are all linear: variables, solver.

    Each variable is a share of its own upper end, and each row a share of its largest factor: as
    they are, the numbers lie too far apart for floats.
    """
    from ortools.linear_solver import pywraplp

    relaxed, proto = pywraplp.Solver.CreateSolver("GLOP"), model.proto
    # As lists: the fields of OR-tools 9.15 answer a negative index with another value.
    far, tops = relaxed.infinity(), [list(one.domain)[-1] for one in proto.variables]
    ends = [max(1, top) for top in tops]
    variables = [relaxed.NumVar(0.0, top / end, "") for top, end in zip(tops, ends, strict=True)]
    for constraint in proto.constraints:
        linear = constraint.linear
        factors = [f * ends[v] for v, f in zip(linear.vars, linear.coeffs, strict=True)]
        if not factors:
            continue
        scale = max(map(abs, factors))
        low, high = (_edge(edge, scale, far) for edge in linear.domain)
        row = relaxed.RowConstraint(low, high, "")
        for index, factor in zip(linear.vars, factors, strict=True):
            row.SetCoefficient(variables[index], factor / scale)
    goal, of = relaxed.Objective(), proto.objective
    factors = [f * ends[v] for v, f in zip(of.vars, of.coeffs, strict=True)]
    for index, factor in zip(of.vars, factors, strict=True):
        goal.SetCoefficient(variables[index], factor / max(map(abs, factors)))
    goal.SetMinimization()
    return variables, relaxed


def _edge(edge: int, scale: int, far: float) -> float:
    """An edge of a domain; the solver's own ends of the whole numbers are no limits."""
    if abs(edge) >= 1 << 62:
        return far if edge > 0 else -far
    return edge / scale
