"""Numbers and sentences for people: one form for the commands, the card and the page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Also read by the page's browser engine.
TEXTS: dict[str, str] = json.loads(Path(__file__).with_name("texts.json").read_text(encoding="utf-8"))


def percent(fraction: float) -> str:
    """Write a fraction as people read it: 95 %, 4.2 %, 99.6 %; 0 % and 100 % only where it is exactly that."""
    value = 100 * fraction
    if 0 < value < 0.1:
        return "< 0.1 %"
    if 99.9 < value < 100:
        return "> 99.9 %"
    digits = 0 if value in (0, 100) or 10 <= value <= 99 else 1
    return f"{value:.{digits}f} %"


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
    if estimate.get("low") is None:
        return f"{value} (no interval)"
    return f"{value} ({format_number(estimate['low'])} to {format_number(estimate['high'])})"
