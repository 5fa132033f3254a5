"""The final account: what was done, what died, and everything that is wrong with it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from .board import NOT_SUMS, Board, Figure


@dataclass(slots=True)
class Account:
    """Violations make the run a failure; figures are for the reader."""

    seed: int
    workers: int
    seconds: float = 0.0
    deeds: dict[str, int] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def count(self, kind: str) -> None:
        self.deeds[kind] = self.deeds.get(kind, 0) + 1

    def read_board(self, board: Board) -> None:
        for figure in Figure:
            if figure >= NOT_SUMS:
                self.figures[figure.name.lower()] = board.total(figure)
        self.figures["longest_lease_seconds"] = round(board.total(Figure.LONGEST_LEASE_NS) / 1e9, 3)
        self.figures["longest_connect_seconds"] = round(board.total(Figure.LONGEST_CONNECT_NS) / 1e9, 3)
        if twice := board.opened_twice():
            self.violations.append(f"{twice} handles were opened twice")

    @property
    def is_closed(self) -> bool:
        return not self.violations

    def to_json(self) -> str:
        return json.dumps(
            {
                "seed": self.seed, "workers": self.workers, "seconds": round(self.seconds, 1), "deeds": self.deeds,
                "figures": self.figures, "violations": self.violations,
            }
        )  # fmt: skip

    def to_text(self) -> str:
        lines = [f"soak: {self.seconds:.0f} s, {self.workers} workers, seed {self.seed}", "", "what the engine did"]
        lines += [f"  {name.replace('_', ' '):32}{count:>14,}" for name, count in sorted(self.deeds.items())]
        lines += ["", "figures"]
        for name, value in self.figures.items():
            shown = f"{value:,}" if isinstance(value, int | float) else str(value)
            lines.append(f"  {name.replace('_', ' '):32}{shown:>14}")
        lines += ["", "the account closes" if self.is_closed else f"{len(self.violations)} VIOLATIONS"]
        lines += [f"  {text}" for text in self.violations[:50]]
        return "\n".join(lines)
