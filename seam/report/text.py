"""Numbers and Markdown tables as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def markdown(head: Sequence[str], body: Iterable[Sequence[Any]], left: int) -> list[str]:
    """A Markdown table; the first `left` columns are left-aligned, the others right-aligned."""
    rule = ["---" if i < left else "---:" for i in range(len(head))]
    escaped = [[str(cell).replace("|", "\\|") for cell in line] for line in body]
    return [f"| {' | '.join(line)} |" for line in [list(head), rule, *escaped]]


def fixed(value: float | str, digits: int, sign: bool = False) -> str:
    """A number with fixed digits, or a dash for a missing one."""
    return "–" if value == "" else f"{value:{'+' if sign else ''}.{digits}f}"


def seconds(value: float) -> str:
    """Seconds with three significant digits where they matter."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def factor(value: float) -> str:
    """A ratio such as 37.2x."""
    return f"{value:.2f}x" if value < 10 else f"{value:.1f}x" if value < 100 else f"{value:,.0f}x"
