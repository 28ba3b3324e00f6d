"""What the verifier has to say: findings, each with the rows it concerns, and the lines for the terminal."""

from __future__ import annotations

from dataclasses import dataclass, field

SHOWN = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written: from which row on (None: of no row), and what."""

    seq: int | None
    what: str
    until: int | None = None  # last row it may concern
    sure: bool = False  # this row, by its own hash or its absence

    def __str__(self) -> str:
        if self.seq is None:
            return self.what
        if self.until is not None and self.until != self.seq:
            return f"rows {self.seq} to {self.until}: {self.what}"
        return f"row {self.seq}: {self.what}"


@dataclass(slots=True)
class Verdict:
    """What the verifier found, and what it looked at."""

    name: str
    findings: list[Finding] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # true, and worth knowing; nothing is wrong
    n_rows: int = 0
    n_checkpoints: int = 0

    @property
    def whole(self) -> bool:
        """Say whether nothing was found."""
        return not self.findings

    @property
    def first(self) -> Finding | None:
        """Return the finding with the lowest row: one that is sure of its row before one that says a range or a suspicion."""
        placed = [finding for finding in self.findings if finding.seq is not None]
        if placed:
            return min(placed, key=lambda f: (not f.sure, f.seq, f.until is not None and f.until != f.seq))
        return self.findings[0] if self.findings else None

    def add(self, seq: int | None, what: str, until: int | None = None, *, sure: bool = False) -> None:
        """Note something that is wrong."""
        self.findings.append(Finding(seq, what, until, sure))

    def lines(self) -> list[str]:
        """Return the verdict as lines for the terminal."""
        if self.whole:
            return [f"{self.name}: whole", *(f"  {remark}" for remark in self.remarks)]
        first = self.first
        rest = [finding for finding in self.findings if finding is not first]
        more = [f"  … and {len(rest) - SHOWN} more"] if len(rest) > SHOWN else []
        return [
            f"{self.name}: NOT WHOLE, {len(self.findings)} finding{'s' if len(self.findings) > 1 else ''}",
            f"  first: {first}",
            *(f"  {finding}" for finding in rest[:SHOWN]),
            *more,
            *(f"  {remark}" for remark in self.remarks),
        ]
