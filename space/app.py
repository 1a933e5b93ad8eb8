"""The Space: add photos of a lesion, read the differential and where it came from. The answers come from `modeling`.

python space/app.py --model runs/demo/model        # a model folder or a Hub repository
MODEL_ID=me/skin-lesion-b0 MODEL_REVISION=v1.0 python app.py
"""

from pathlib import Path
from typing import Any

import gradio as gr

import answers
import render
from modeling.images import ImageError
from modeling.predictor import LesionClassifier
from report import report_html
from uploads import PhotoFile, PhotoFiles

HERE = Path(__file__).parent


def build_demo(classifier: LesionClassifier) -> gr.Blocks:
    """Return the page for a model; open it with `launch`."""

    def answer(photos: list[answers.Photo] | None) -> dict[str, Any] | None:
        if not photos:
            return None
        try:
            fields = answers.answer_lesion(classifier, photos)
        except ImageError as error:
            return {"error": str(error)}
        return {**fields, "report_html": report_html(fields)}

    with gr.Blocks(title="Skin lesion classifier", analytics_enabled=False) as demo:
        gr.HTML(header(classifier), elem_id="lesion-head")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                photos = PhotoFiles(label="Photos of one lesion", file_count="multiple", height=170, elem_id="photos")
            with gr.Column(scale=4, min_width=320):
                shown = gr.HTML(
                    html_template='<div class="lesion-host"></div>',
                    js_on_load=(HERE / "answer.js").read_text(encoding="utf-8"),
                    style=(HERE / "answer.css").read_text(encoding="utf-8"),
                    colours=render.COLOURS,
                    fade_below=render.FADE_BELOW,
                    elem_id="answer",
                )
        gr.on([photos.upload, photos.delete, photos.clear], answer, photos, shown, api_visibility="private")
    return demo


def header(classifier):
    return f"<h1>Skin lesion classifier</h1><p class='notice'>{classifier.notice}</p>"


def launch(demo: gr.Blocks, **options: Any):
    font = ["system-ui", "sans-serif"]
    return demo.queue(max_size=64).launch(
        theme=gr.themes.Default(font=font, font_mono=["ui-monospace", "monospace"]),
        css_paths=HERE / "style.css",
        show_error=True,
        run_history=False,
        mcp_server=True,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=["api"],
        **options,
    )


if __name__ == "__main__":
    import sys

    launch(build_demo(LesionClassifier.from_pretrained(sys.argv[1])))
