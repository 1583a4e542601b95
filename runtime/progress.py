"""How long work tells somebody how far it is, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Hears of stages and their steps; a stage ends where the next one starts."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage begins, of ``total`` steps where that is known."""

    def advance(self) -> None:
        """One step of the current stage is done."""


class Silent:
    """Tells nobody."""

    def stage(self, name: str, total: int | None = None) -> None:
        """See ``Progress``."""

    def advance(self) -> None:
        """See ``Progress``."""
