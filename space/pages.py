"""The words and static parts of the page, as HTML; every value is escaped by Jinja."""

import base64
import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import render
from answers import percent
from huggingface_hub import snapshot_download
from jinja2 import Environment, StrictUndefined, UndefinedError
from markupsafe import Markup, escape
from PIL import Image

from modeling.classifier import LesionClassifier
from modeling.estimates import format_estimate
from modeling.labels import NOTICE
from modeling.metrics_file import read_metrics

MAX_FIGURES = 16

_HTML = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)

_HEADER = _HTML.from_string("""
<h1>Skin lesion classifier</h1>
<p class="notice" role="note">{{ notice }}</p>
<p class="model">Model <strong>{{ model_id }}</strong>{{ ", revision " ~ revision[:12] if revision else "" }},
tells {{ n_diagnoses }} diagnoses apart.</p>
{% if from_cache %}
<p class="lesion-box" role="status">The Hub does not answer at the moment; this is the copy downloaded earlier.</p>
{% endif %}
""")

_FAULT = _HTML.from_string("""
<h1>Skin lesion classifier</h1>
<p class="notice" role="note">{{ notice }}</p>
<div class="lesion-box" role="alert" id="fault"><p><strong>There is no model to answer with.</strong></p>
<p>{{ sentence }}</p>
<p>This page tries again every minute; reload it then.</p></div>
""")

UPLOAD_HELP = """<div class="lesion-small">
<p>JPEG, PNG, WebP, TIFF, BMP or GIF. Several photos of the <em>same</em> lesion are averaged (up to 8).</p>
<p>Photos are deleted from this server within minutes and are used for nothing else. Nothing of yours is kept
after the session.</p></div>"""

BATCH_HELP = """<div class="lesion-small"><p>Up to 200 pictures at once, each a lesion of its own. Files in a zip
archive are read without being unpacked to disk. All are deleted from this server within minutes.</p></div>"""

_NO_CARD = _HTML.from_string("""
<div class="lesion-box" id="no-card"><p>The numbers of this model cannot be shown here. {{ reason }}</p></div>
""")

_EXAMPLES = _HTML.from_string("""
<p id="examples-title">No photo at hand? Try a drawing</p>
<div class="examples">
{% for example in examples %}
<button type="button" data-index="{{ loop.index0 }}" aria-label="Classify example {{ loop.index }}, a drawing">
<img src="{{ example }}" alt="Drawing of a lesion, example {{ loop.index }}"></button>
{% endfor %}
</div>
<p class="lesion-small">Drawn by this project's own code, free under Apache-2.0; not photographs of skin.</p>
""")

EXAMPLES_JS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-index]");
  if (button) trigger("click", { index: Number(button.dataset.index) });
});
"""

_PROGRAMS = _HTML.from_string("""
<h2>Use it from a program</h2>
<p>Three endpoints answer in JSON: <code>/classify</code> (one photo), <code>/explain</code> (one photo, with the heat
map of a diagnosis) and <code>/batch</code> (files and zip archives). Send files; addresses are not fetched.</p>
<h3>Python</h3>
<pre tabindex="0">from gradio_client import Client, handle_file

client = Client("{{ address }}")
answer = client.predict(handle_file("lesion.jpg"), api_name="/classify")
answer["abstained"], answer["diagnosis"], answer["probabilities"]

answer, overlay = client.predict(handle_file("lesion.jpg"), "{{ code }}", api_name="/explain")
table = client.predict([handle_file("a.jpg"), handle_file("more.zip")], api_name="/batch")</pre>
<h3>curl</h3>
<pre tabindex="0">FILE=$(curl -s -F files=@lesion.jpg {{ address }}/gradio_api/upload | tr -d '[]"')
EVENT=$(curl -s {{ address }}/gradio_api/call/classify -H 'Content-Type: application/json' \\
  -d '{"data": [{"path": "'$FILE'", "meta": {"_type": "gradio.FileData"}}]}' | cut -d'"' -f4)
curl -sN {{ address }}/gradio_api/call/classify/$EVENT</pre>
<h3>MCP, for assistants</h3>
<pre tabindex="0">{{ mcp }}</pre>
<p class="lesion-small">The tools are <code>classify</code>, <code>explain</code> and <code>batch</code>. A photo is
sent as a <code>data:image/jpeg;base64,…</code> string.</p>
""")


def header(classifier: LesionClassifier) -> str:
    """Return title, notice and model of the page."""
    return _HEADER.render(
        notice=classifier.notice,
        model_id=classifier.model_id,
        revision=classifier.revision,
        n_diagnoses=len(classifier.codes),
        from_cache=classifier.source.from_cache,
    )


def fault(sentence: str) -> str:
    """Return what the page says while there is no model."""
    return _FAULT.render(notice=NOTICE, sentence=sentence)


def examples(files: Sequence[Path]) -> str:
    """Return the example drawings as buttons."""
    pictures = []
    for file in files:
        with Image.open(file) as picture:
            pictures.append(render.thumbnail(picture.convert("RGB"), 144))
    return _EXAMPLES.render(examples=pictures)


def programs(classifier: LesionClassifier) -> str:
    """Return how to call the page from Python, curl and MCP, with its own address where that is known."""
    host = os.environ.get("SPACE_HOST")
    address = f"https://{host}" if host else f"http://127.0.0.1:{os.environ.get('GRADIO_SERVER_PORT', '7860')}"
    mcp = {"mcpServers": {"skin-lesion": {"url": f"{address}/gradio_api/mcp/"}}}
    return _PROGRAMS.render(address=address, code=classifier.codes[0], mcp=json.dumps(mcp, indent=2))


def card(classifier: LesionClassifier) -> str:
    """Return the key numbers and figures of the model's card, or why they cannot be shown."""
    try:
        return _card(*_card_source(classifier))
    except (OSError, ValueError, httpx.HTTPError) as error:
        return _NO_CARD.render(reason=f"metrics.json could not be read: {error}")
    except UndefinedError as error:
        return _NO_CARD.render(reason=f"metrics.json is of a form that this page does not know: {error}.")


def _card_source(classifier: LesionClassifier) -> tuple[Path, str]:
    """Return the folder with metrics.json and figures/, downloaded if the model came from the Hub, and its weights' hash.

    Raises:
        FileNotFoundError: If the model was published without them.
        OSError, httpx.HTTPError: If the Hub does not hand them over.
    """
    folder = classifier.source.path
    if classifier.revision is not None:
        files = ["metrics.json", "figures/*.png"]
        folder = Path(snapshot_download(classifier.model_id, revision=classifier.revision, allow_patterns=files))
    if not (folder / "metrics.json").is_file():
        raise FileNotFoundError("the model was published without it")
    return folder, str(classifier.lesion["weights_sha256"])


@lru_cache(maxsize=2)
def _card(folder: Path, weights_sha256: str) -> str:
    metrics = read_metrics(folder / "metrics.json")
    files = [folder / "figures" / Path(str(name)).name for name in metrics.get("figures", [])[:MAX_FIGURES]]
    leak = metrics.get("data", {}).get("leakage", {}).get("overall")
    return _CARD.render(
        metrics=metrics,
        test=metrics.get("test", {}),
        baselines={
            name: row for name, row in metrics.get("baselines", {}).items() if isinstance(row, dict) and "sees" in row
        },
        points=[point for point in metrics.get("operating_points", []) if "test" in point],
        leaking="an unknown share" if leak is None else percent(leak),
        figures={
            file.stem.replace("_", " "): "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode("ascii")
            for file in files
            if file.is_file()
        },
    )


def estimate(value: dict[str, Any]) -> str:
    """Write a number of metrics.json, its interval in small type."""
    number, bracket, interval = format_estimate(value).partition(" (")
    return escape(number) + (Markup('<span class="interval"> ({}</span>').format(interval) if bracket else "")


_HTML.filters["estimate"] = estimate
_CARD = _HTML.from_string((Path(__file__).parent / "card.html").read_text(encoding="utf-8"))
