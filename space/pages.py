"""The words and static parts of the page, as HTML; every value is escaped by Jinja."""

import base64
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from uploads import note_fault

from modeling.classifier import LesionClassifier
from modeling.files import ModelFolderError
from modeling.formatting import format_estimate, percent
from modeling.labels import NOTICE
from modeling.metrics_file import read_metrics
from modeling.model_folder import METRICS_NAME, ModelFolder, file_beside
from modeling.prediction import target_name

MAX_FIGURES = 16
ADDRESS = "http://127.0.0.1:7860"  # gradio's own first choice

_HTML = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)

_HEADER = _HTML.from_string("""
<h1>Skin lesion classifier</h1>
<p class="notice" role="note">{{ notice }}</p>
<p class="model">Model <strong>{{ model_id }}</strong>{{ ", revision " ~ revision[:12] if revision else "" }},
tells {{ n_diagnoses }} diagnoses apart.</p>
{% if from_cache %}
<p class="lesion-box" role="status">The Hub does not answer at the moment; this is the copy downloaded earlier.</p>
{% endif %}
<div role="tablist" aria-label="Parts of this page">
{% for name, text in tabs %}
<button type="button" role="tab" id="tab-{{ name }}" aria-controls="{{ name }}"
aria-selected="{{ "true" if loop.first else "false" }}" tabindex="{{ 0 if loop.first else -1 }}">{{ text }}</button>
{% endfor %}
</div>
""")
_TABS = (("lesion", "One lesion"), ("batch", "Batch"), ("card", "Model"), ("programs", "API"))

_FAULT = _HTML.from_string("""
<h1>Skin lesion classifier</h1>
<p class="notice" role="note">{{ notice }}</p>
<div class="lesion-box" role="alert" id="fault"><p><strong>There is no model to answer with.</strong></p>
<p>{{ sentence }}</p>
<p>This page tries again every minute; reload it then.</p></div>
""")

_NO_CARD = _HTML.from_string("""
<div class="lesion-box" id="no-card"><p>The numbers of this model cannot be shown here. {{ reason }}</p></div>
""")

# The numbers are asked for when their tab is first opened.
CARD_JS = """
let asked = false;
window.addEventListener("lesion-tab", (event) => {
  if (event.detail === "card" && !asked) { asked = true; trigger("wanted"); }
});
"""

# In the browser, which alone knows by which address the page was reached.
PROGRAMS_JS = f"""
for (const lines of element.querySelectorAll("pre"))
  lines.textContent = lines.textContent.replaceAll("{ADDRESS}", location.origin);
"""

_PROGRAMS = _HTML.from_string(r"""
<h2>Use it from a program</h2>
<p>Three endpoints answer in JSON: <code>/classify</code> (one photo), <code>/explain</code> (one photo, with the heat
map of a diagnosis) and <code>/batch</code> (files and zip archives). Send files; addresses are not fetched.</p>
<h3>Python</h3>
<pre tabindex="0">from gradio_client import Client, handle_file

client = Client("{{ address }}")
answer = client.predict(handle_file("lesion.jpg"), api_name="/classify")
answer["verdict"], answer["abstained"], answer["operating_points"], answer["probabilities"]

answer, overlay = client.predict(handle_file("lesion.jpg"), "{{ code }}", api_name="/explain")
table = client.predict([handle_file("a.jpg"), handle_file("more.zip")], api_name="/batch")</pre>
<h3>curl</h3>
<pre tabindex="0">FILE="my lesion.jpg"
SENT=$(curl -s -F "files=@\"$FILE\"" {{ address }}/gradio_api/upload | sed 's/^\["//; s/"]$//')
EVENT=$(curl -s {{ address }}/gradio_api/call/classify -H 'Content-Type: application/json' \
  -d '{"data": [{"path": "'"$SENT"'", "meta": {"_type": "gradio.FileData"}}]}' | cut -d'"' -f4)
curl -sN {{ address }}/gradio_api/call/classify/$EVENT</pre>
<h3>MCP, for assistants</h3>
<pre tabindex="0">{{ mcp }}</pre>
<p class="lesion-small">The tools are <code>classify</code>, <code>explain</code> and <code>batch</code>. A photo is
sent as <code>data:image/jpeg;base64,…</code>, or as the path that <code>/gradio_api/upload</code> answered
for its file. Each tool answers JSON, as text and as structured content; <code>explain</code> also the picture.</p>
""")


def header(classifier: LesionClassifier) -> str:
    """Return title, notice and model of the page."""
    return _HEADER.render(
        notice=classifier.notice,
        model_id=classifier.model_id,
        revision=classifier.revision,
        n_diagnoses=len(classifier.codes),
        from_cache=classifier.source.from_cache,
        tabs=_TABS,
    )


def fault(sentence: str) -> str:
    """Return what the page says while there is no model."""
    return _FAULT.render(notice=NOTICE, sentence=sentence)


def programs(classifier: LesionClassifier) -> str:
    """Return how to call the page from Python, curl and MCP, at ADDRESS until PROGRAMS_JS puts its own there."""
    mcp = {"mcpServers": {"skin-lesion": {"url": f"{ADDRESS}/gradio_api/mcp/"}}}
    return _PROGRAMS.render(address=ADDRESS, code=classifier.codes[0], mcp=json.dumps(mcp, indent=2))


def card(classifier: LesionClassifier) -> str:
    """Return the key numbers and figures of the model's card, or why they cannot be shown."""
    try:
        path = file_beside(classifier.source, METRICS_NAME)
        if path is None:
            return _NO_CARD.render(reason="It was published without metrics.json.")
        return _card(read_metrics(path), classifier.source)
    except ModelFolderError as error:
        return _NO_CARD.render(reason=error)
    except Exception as error:  # whatever a stranger's metrics.json makes of the template: the rest of the page answers
        note_fault(error)
        return _NO_CARD.render(reason="metrics.json is of a form that this page does not know.")


def _card(metrics: dict[str, Any], source: ModelFolder) -> str:
    leak = metrics["data"]["leakage"].get("overall")
    figures = {name: file_beside(source, f"figures/{name}") for name in metrics["figures"][:MAX_FIGURES]}
    return _CARD.render(
        metrics=metrics,
        test=metrics["test"],
        baselines=[
            (words + _in_words(row["sees"]), row)
            for name, words in (("metadata_only", "which sees "), ("majority", "which answers "))
            if (row := metrics["baselines"].get(name))
        ],
        points=[
            {**point, "words": f"{percent(point['target_sensitivity'])} of {target_name(point['codes'])}"}
            for point in metrics["operating_points"]
            if "test" in point
        ],
        leaking="an unknown fraction" if leak is None else percent(leak),
        figures={
            name.removesuffix(".png").replace("_", " "): "data:image/png;base64,"
            + base64.b64encode(file.read_bytes()).decode("ascii")
            for name, file in figures.items()
            if file
        },
    )


def _in_words(text: str) -> str:
    """Write the columns of the data as people say them."""
    for column, words in (("age_approx", "age"), ("anatom_site_general", "body site"), ("in train", "in training")):
        text = text.replace(column, words)
    return text


def estimate(value: dict[str, Any]) -> str:
    """Write a number of metrics.json, its interval in small type."""
    number, bracket, interval = format_estimate(value).partition(" (")
    return escape(number) + (Markup(' <span class="interval">({}</span>').format(interval) if bracket else "")


_HTML.filters["estimate"] = estimate
_CARD = _HTML.from_string((Path(__file__).parent / "card.html").read_text(encoding="utf-8"))
