"""docs/metrics.md, generated from the models of `modeling/metrics_file.py`.

python tests/support/metrics_page.py > docs/metrics.md
"""

from typing import Any

from modeling.metrics_file import METRICS_SCHEMA, Metrics

WORDS = {"string": "text", "integer": "count", "number": "number", "boolean": "true or false", "null": "null"}


def metrics_page() -> str:
    """Return the page: one table for each model, the whole file first."""
    schema = Metrics.model_json_schema()
    models = {"Metrics": schema, **schema["$defs"]}
    parts = [f"# metrics.json, schema {METRICS_SCHEMA}", "Generated from `modeling/metrics_file.py`."]
    for name, model in models.items():
        rows = ["| Entry | Type | Meaning |", "|---|---|---|"]
        for entry, field in model["properties"].items():
            rows.append(f"| `{entry}` | {_kind(field)} | {' '.join(field.get('description', '').split())} |")
        parts += [f"## {name}", *filter(None, [model.get("description")]), "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _kind(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(map(_kind, field["anyOf"])))
    if "const" in field or "enum" in field:
        return " or ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field["type"] == "array":
        return f"list of {_kind(field['items'])}"
    if field["type"] == "object":
        values = field.get("additionalProperties") or next(iter(field["patternProperties"].values()))
        return f"{_kind(values)}, by name"
    return WORDS[field["type"]]


if __name__ == "__main__":
    print(metrics_page(), end="")
