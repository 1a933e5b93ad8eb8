"""The report that a visitor takes away: one HTML file without scripts or outside references, and the same as JSON.

The pictures are already in the visitor's browser, so the server writes the words and leaves named gaps; the page fills
them with what is on screen (the chosen diagnosis, opacity and photo). So nothing has to be kept here between the answer
and the download.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from modeling.formatting import percent

# Gaps in the template, filled by the page: written as HTML comments, which escaped text cannot hold.
GAPS = ("photo", "heat", "overlay", "scale", "ticks", "caption")

_TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
_TEMPLATES.filters["percent"] = percent


def report_html(answer: dict[str, Any]) -> str:
    """Return the report of an answer of `answers.answer_lesion`, with named gaps for the pictures and their words."""
    return _TEMPLATES.get_template("report.html").render(
        answer=answer, **{gap: Markup(f"<!--{gap}-->") for gap in GAPS}
    )
