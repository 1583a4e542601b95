"""The cheapest cut of a network with two ends (Dinic's algorithm)."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

UNBOUNDED = 2**60
"""A capacity that no cut pays."""


class Network:
    """A directed network with capacities, between vertices that are made by naming them."""

    def __init__(self) -> None:
        self._index: dict[Hashable, int] = {}
        self._edges: list[list[int]] = []
        self._head: list[int] = []
        self._left: list[int] = []

    def connect(self, tail: Hashable, head: Hashable, capacity: int) -> None:
        """Add an edge; what flows along it is at most ``capacity``."""
        ends = self._vertex(tail), self._vertex(head)
        for vertex, other, room in ((*ends, capacity), (*reversed(ends), 0)):
            self._edges[vertex].append(len(self._head))
            self._head.append(other)
            self._left.append(room)

    def cuts(self, source: Hashable, sink: Hashable) -> tuple[set[Hashable], set[Hashable]]:
        """The vertices on the side of ``source``, in the smallest and the largest cheapest cut."""
        start, end = self._vertex(source), self._vertex(sink)
        while (levels := self._levels(start, end)) is not None:
            self._saturate(start, end, levels)
        near = self._reached(start, backwards=False)
        far = self._reached(end, backwards=True)
        names = list(self._index)
        return {names[v] for v in near}, {n for v, n in enumerate(names) if v not in far}

    def _vertex(self, name: Hashable) -> int:
        if name not in self._index:
            self._index[name] = len(self._edges)
            self._edges.append([])
        return self._index[name]

    def _levels(self, start: int, end: int) -> list[int] | None:
        levels = [-1] * len(self._edges)
        levels[start] = 0
        queue = deque([start])
        while queue:
            vertex = queue.popleft()
            for edge in self._edges[vertex]:
                if self._left[edge] and levels[self._head[edge]] < 0:
                    levels[self._head[edge]] = levels[vertex] + 1
                    queue.append(self._head[edge])
        return levels if levels[end] >= 0 else None

    def _saturate(self, start: int, end: int, levels: list[int]) -> None:
        """Push along shortest paths until none is left."""
        position = [0] * len(self._edges)
        path: list[int] = []
        vertex = start
        while True:
            if vertex == end:
                room = min(self._left[edge] for edge in path)
                for edge in path:
                    self._left[edge] -= room
                    self._left[edge ^ 1] += room
                path, vertex = [], start
                continue
            edge = self._onwards(vertex, levels, position)
            if edge is not None:
                path.append(edge)
                vertex = self._head[edge]
                continue
            if not path:
                return
            # A dead end: never come here again.
            levels[vertex] = -1
            vertex = self._head[path.pop() ^ 1]

    def _onwards(self, vertex: int, levels: list[int], position: list[int]) -> int | None:
        edges = self._edges[vertex]
        while position[vertex] < len(edges):
            edge = edges[position[vertex]]
            if self._left[edge] and levels[self._head[edge]] == levels[vertex] + 1:
                return edge
            position[vertex] += 1
        return None

    def _reached(self, start: int, *, backwards: bool) -> set[int]:
        seen = {start}
        waiting = [start]
        while waiting:
            for edge in self._edges[waiting.pop()]:
                open_edge = edge ^ 1 if backwards else edge
                if self._left[open_edge] and self._head[edge] not in seen:
                    seen.add(self._head[edge])
                    waiting.append(self._head[edge])
        return seen
