"""How the time of the server's step grows with the number of clients.

python -m simulations bench scaling
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simulations import bench_aggregation
from simulations.stamp import as_text, stamp

CLIENTS = (100, 300, 1000, 3000, 10_000)
MANY = 1000
"""From so many clients on, what does not depend on their number takes little of the time."""


def exponent(clients: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Fit ``seconds = factor * clients ** exponent`` by least squares on logarithms.

    Parameters
    ----------
    clients, seconds
        Two or more measurements, all above 0.

    Returns
    -------
    exponent, factor : float
        1 is linear growth, 2 quadratic; the factor is in seconds.
    """
    slope, intercept = np.polyfit(np.log(clients), np.log(seconds), 1)
    return float(slope), float(np.exp(intercept))


def run(clients: Sequence[int], folder: Path) -> dict[str, Any]:
    """Measure every number of clients, then write ``aggregation.json`` and ``aggregation.md``.

    Returns
    -------
    dict
        What the JSON file holds.
    """
    runs = [bench_aggregation.run(number) for number in clients]
    power, factor = _fit(runs)
    many = [r for r in runs if r["clients"] >= MANY]
    report: dict[str, Any] = {
        **stamp(),
        "exponent": round(power, 3),
        "exponent_many": round(_fit(many)[0], 3) if len(many) > 1 else None,
        "factor": factor,
        "runs": runs,
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2) + "\n"
    (folder / "aggregation.json").write_text(text, encoding="utf-8")
    table = _table(report)
    (folder / "aggregation.md").write_text(table, encoding="utf-8")
    print(table)
    return report


def _fit(runs: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    return exponent([r["clients"] for r in runs], [r["seconds"] for r in runs])


def _table(report: dict[str, Any]) -> str:
    lines = [
        "# aggregation",
        "",
        f"{as_text(report)}; synthetic uploads, about "
        f"{report['runs'][0]['tokens']} tokens of {report['runs'][0]['dim']} dimensions a client, "
        "settings by default; `aggregate()` and the candidates to compare. "
        "Peak memory is the whole process's.",
        "",
        "| clients | seconds | seconds per 1,000 clients | peak MiB | uploads MiB | tokens found | "
        "quadratic way, seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in report["runs"]:
        quadratic = r["quadratic_seconds"]
        lines.append(
            f"| {r['clients']:,} | {r['seconds']:.2f} | {1000 * r['seconds'] / r['clients']:.2f} | "
            f"{r['peak_mib']:,} | {r['uploads_mib']:,} | {r['prompt_tokens']} | "
            f"{'-' if quadratic is None else f'{quadratic:.2f}'} |"
        )
    fit = f"Fit: seconds grow with clients to the power of {report['exponent']:.2f}"
    if report["exponent_many"] is not None:
        fit += f", from {MANY:,} clients on to that of {report['exponent_many']:.2f}"
    return "\n".join([*lines, "", fit + "; 1 is linear.", ""])
