"""The Space: a page, an API and MCP tools for one model. The answers come from `modeling`.

python space/app.py                                # the released model
python space/app.py --model runs/demo/model        # a model folder or a Hub repository
python space/app.py --static                       # the page without a server: the browser computes
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import tempfolder
import zero_gpu

from modeling.runtime import prepare_server

prepare_server()  # before an engine is loaded
zero_gpu.register()  # before gradio is loaded

# isort: split
import gradio as gr
import gradio_internals
import static_space
from endpoints import GetClassifier, add_endpoints
from serving import launch, port_of
from uploads import note_fault
from visitors import Visitors

from modeling.classifier import LesionClassifier
from modeling.files import ModelFolderError, read_json
from modeling.model_folder import released_model

RETRY_EVERY_S = 60


def build_demo(get: GetClassifier, visitors: Visitors) -> gr.Blocks:
    """Return the endpoints of a model as Blocks; the page itself is `page/`. Open them with `launch`."""
    with gr.Blocks(title="Skin lesion classifier", analytics_enabled=False) as demo:
        add_endpoints(get, visitors)
    gradio_internals.guard(demo)
    return demo


class Model:
    """The model of the page, or the reason why there is none yet."""

    def __init__(self, name: str | Path, revision: str | None) -> None:
        self.name, self.revision = name, revision
        self.classifier: LesionClassifier | None = None
        self.problem = ""

    def get(self) -> LesionClassifier:
        """Return the model; raises a ModelFolderError while there is none."""
        if self.classifier is None:
            raise ModelFolderError(self.problem)
        return self.classifier

    def open(self) -> None:
        """Load it. Where that fails, the one that was loaded earlier stays, and `problem` says why."""
        try:
            self.classifier = LesionClassifier.from_pretrained(self.name, revision=self.revision)
        except ModelFolderError as error:
            self.problem = str(error)
        except Exception as error:  # of a library, about an untrusted file
            note_fault(error)
            self.problem = f"{self.name} cannot be used ({type(error).__name__}): {str(error)[:300]}"

    @property
    def settled(self) -> bool:
        """True if it is loaded, and not from an earlier download because the Hub did not answer."""
        return self.classifier is not None and not self.classifier.source.from_cache


def main(arguments: list[str] | None = None) -> int:
    """Load the model and serve its page until the process is stopped."""
    parser = argparse.ArgumentParser(description="Serve the page of a skin lesion model.")
    parser.add_argument("--model", help="model folder or Hub repository; default: MODEL_ID, else the released model")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub; default: MODEL_REVISION")
    parser.add_argument("--port", help="default: GRADIO_SERVER_PORT, else 7860")
    parser.add_argument("--static", action="store_true", help="serve the page that computes in the browser (needs npm)")
    options = parser.parse_args(arguments)
    tempfolder.end_by_sigterm()
    try:
        port = port_of(options.port)
        committed = Path(__file__).with_name("model.json")  # of `publish space`; the variables override it
        given = os.environ.get("MODEL_ID")
        hosted: dict[str, Any] = {"model_id": given} if given else read_json(committed) if committed.is_file() else {}
        hosted["revision"] = os.environ.get("MODEL_REVISION", hosted.get("revision"))
        is_hosted = bool(hosted.get("model_id")) and not options.model
        revision = options.revision or (hosted["revision"] if is_hosted else None) or None
        name = str(options.model or hosted.get("model_id") or released_model())
        model = Model(name, revision)
        if options.static:
            static_space.serve(model.name, port, revision=revision)
            return 0
        model.open()
        if not is_hosted:
            model.get()
    except (ModelFolderError, static_space.BuildError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    visitors = Visitors()
    print(f"The page is at {launch(build_demo(model.get, visitors), model.get, visitors, port=port)}", flush=True)
    while True:
        if not model.settled and model.problem:
            print(f"error: {model.problem}", file=sys.stderr, flush=True)
        time.sleep(RETRY_EVERY_S)
        if not model.settled:
            model.open()


if __name__ == "__main__":
    sys.exit(main())
