"""Markdown tables, read back."""

from __future__ import annotations


def table_rows(text: str) -> list[dict[str, str]]:
    """The rows of all Markdown tables, by column name."""
    found: list[dict[str, str]] = []
    head: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells or set(cells[0]) == {"-"}:
            head = head if cells else []
        elif head:
            found.append(dict(zip(head, cells, strict=True)))
        else:
            head = cells
    return found
