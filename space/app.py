"""The Space: a page, an API and MCP tools for one model. The answers come from `modeling`.

python space/app.py                                # the released model
python space/app.py --model runs/demo/model        # a model folder or a Hub repository
python space/app.py --static                       # the same page, computing in the visitor's browser
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

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
from modeling.files import ModelFolderError
from modeling.model_folder import released_model

RETRY_EVERY_S = 60


def build_demo(get: GetClassifier, visitors: Visitors) -> gr.Blocks:
    """Return the endpoints of a model as Blocks; the page itself is `page/`. Open them with `launch`."""
    with gr.Blocks(title="Skin lesion classifier", analytics_enabled=False) as demo:
        add_endpoints(get, visitors)
    gradio_internals.guard_errors(demo)
    return demo


class Model:
    """The model of the page, or the reason why it is not there yet."""

    def __init__(self, name: str | Path, revision: str | None) -> None:
        self.name, self.revision = name, revision
        self.classifier: LesionClassifier | None = None
        self.problem = "The model is being loaded; try again in a minute."

    def get(self) -> LesionClassifier:
        """Return the model.

        Raises:
            ModelFolderError: If there is none.
        """
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
    hosted = {"model_id": os.environ.get("MODEL_ID"), "revision": os.environ.get("MODEL_REVISION")}
    if (file := Path(__file__).with_name("model.json")).is_file() and not hosted["model_id"]:
        hosted = {
            **json.loads(file.read_text(encoding="utf-8")),
            **({"revision": r} if (r := hosted["revision"]) else {}),
        }
    try:
        port = port_of(options.port)
        name = options.model or hosted["model_id"] or released_model()
        if options.static:
            static_space.serve(name, port, revision=options.revision)
            return 0
        model = Model(name, options.revision or (None if options.model else hosted["revision"]) or None)
        model.open()
        if options.model or not hosted["model_id"]:
            model.get()
    except (ModelFolderError, ValueError, static_space.BuildError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    visitors = Visitors()
    address = launch(build_demo(model.get, visitors), model.get, visitors, port=port)
    print(f"The page is at {address} (stop it with Ctrl-C).", flush=True)
    while True:
        if not model.settled and model.name == hosted["model_id"]:
            print(f"error: {model.problem}", file=sys.stderr, flush=True)
        time.sleep(RETRY_EVERY_S)
        if not model.settled:
            model.open()


if __name__ == "__main__":
    sys.exit(main())
