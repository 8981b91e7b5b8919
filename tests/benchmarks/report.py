"""The table of what was found, on the screen and as Markdown."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measuring import Finding
from rich.console import Console
from rich.table import Table

COLUMNS = ("id", "workload", "result", "peer", "number", "target", "met")
Named = tuple[str, Finding]
"""The name of a benchmark and one of its findings."""


def print_table(findings: Sequence[Named]) -> None:
    """Print all findings and the machine they hold for."""
    table = Table(*COLUMNS, caption=machine(), show_lines=True)
    for cells in _rows(findings):
        table.add_row(*cells, style={"no": "red", "not had": "yellow"}.get(cells[-1]))
    Console(width=None if os.isatty(1) else 180).print(table)


def write_markdown(findings: Sequence[Named], path: Path) -> None:
    """Write the same as a Markdown table."""
    lines = [f"Machine: {machine()}", "", _line(COLUMNS), _line(["---"] * len(COLUMNS))]
    lines += [_line(cells) for cells in _rows(findings)]
    path.write_text("\n".join(lines) + "\n")


def machine() -> str:
    """What the numbers were measured on."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    parts = [
        f"{len(os.sched_getaffinity(0))} cores of {_cpu()}",
        f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        f"{blas['name']} {blas['version']}",
        f"numpy {np.__version__}, Python {platform.python_version()}",
        f"load {os.getloadavg()[2]:.1f} over the last 15 minutes",
    ]
    return "; ".join(parts)


def _rows(findings: Sequence[Named]) -> list[list[str]]:
    return [
        [
            name,
            finding.workload,
            finding.ours,
            finding.peer,
            "" if finding.number is None else f"{finding.number:.3g}",
            finding.target,
            {True: "yes" if finding.target else "", False: "no", None: "not had"}[finding.met],
        ]
        for name, finding in findings
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
