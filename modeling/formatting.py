"""How a number of metrics.json is written for people: one form for the summary, the card and the page."""

from collections.abc import Mapping
from typing import Any


def format_number(value: float | None, digits: int = 3) -> str:
    """Write a plain number of metrics.json."""
    return "not estimable" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"  # no minus zero


def format_estimate(estimate: Mapping[str, Any]) -> str:
    """Write a value with its 95 % interval, "0.705 (0.660 to 0.748)", or say why there is none."""
    reason = estimate.get("reason", "")
    if estimate["value"] is None:
        return "suppressed" if reason.startswith("suppressed") else f"not estimable: {reason}"
    value = format_number(estimate["value"])
    if "if_calibrated" in estimate:
        low, high = (format_number(estimate["if_calibrated"][bound]) for bound in ("low", "high"))
        return f"{value} ({low} to {high} if perfectly calibrated)"
    if "low" not in estimate:
        return value
    if estimate["low"] is None:
        return f"{value} (no interval)"
    return f"{value} ({format_number(estimate['low'])} to {format_number(estimate['high'])})"
