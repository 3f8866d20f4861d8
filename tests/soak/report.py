"""What a soak prints at its end, and whether every promise was kept."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(width=None if sys.stdout.isatty() else 120)


def report(found: dict[str, Any]) -> bool:
    """Print the result; return whether every promise was kept."""
    table = Table(box=None, show_header=False)
    for fault, count in sorted(found["faults"].items()):
        table.add_row(fault, str(count))
    table.add_row("orders", str(found["orders"]))
    if rate := found.get("jobs a second"):
        table.add_row("jobs a second, faults included", rate)
    for status, count in sorted(found["statuses"].items()):
        table.add_row(f"  {status}", str(count))
    table.add_row("events that reached the endpoint", str(found["reached"]))
    table.add_row("  and came once more", str(found["again"]))
    kinds = Counter(sentence.split(": ", 1)[-1].split(" (")[0] for sentence in found["untruths"])
    table.add_row("lost, untrue, overlapping or done twice", str(len(found["untruths"])))
    table.add_row("memory of the worker that lived, end / middle", f"{found['growth']:.2f}")
    table.add_row("clients of Redis at the end", str(found["redis_clients"]))
    console.print(table)
    for kind, count in kinds.items():
        console.print(f"{count} x {kind}", style="red", highlight=False)
    for sentence in found["untruths"][:10]:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    return not found["untruths"] and found["survived"] and found["growth"] < 1.5
