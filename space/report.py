"""The report that a visitor takes away: one HTML file without scripts or outside references, and the same as JSON.

The pictures are already in the visitor's browser, so the server writes the words and leaves named gaps; the page fills
them with what is on screen (the chosen diagnosis, opacity and photo). So nothing has to be kept here between the answer
and the download.
"""

from pathlib import Path
from typing import Any

import answers
from jinja2 import Environment, FileSystemLoader, StrictUndefined

# Gaps in the template; neither can occur in escaped text.
PHOTO_GAP, HEAT_GAP, OVERLAY_GAP, CAPTION_GAP = "@@photo@@", "@@heat@@", "@@overlay@@", "@@caption@@"

_TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
_TEMPLATES.filters["probability_percent"] = answers.probability_percent


def report_html(answer: dict[str, Any]) -> str:
    """Return the report of an answer of `answers.answer_lesion`, with gaps for the three pictures and their caption."""
    return _TEMPLATES.get_template("report.html").render(
        answer=answer, photo=PHOTO_GAP, heat=HEAT_GAP, overlay=OVERLAY_GAP, caption=CAPTION_GAP
    )
