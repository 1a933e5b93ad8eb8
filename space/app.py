"""The Space: a page, an API and MCP tools for one model. The answers come from `modeling`.

python space/app.py                                # the released model
python space/app.py --model runs/demo/model        # a model folder or a Hub repository
python space/app.py --static                       # the page without a server: the browser computes
"""

import argparse
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from modeling.runtime import prepare_server

prepare_server()  # before an engine is loaded
with contextlib.suppress(ImportError):  # only the platform has it
    import spaces

    @spaces.GPU  # type: ignore[untyped-decorator]
    def unused() -> None:
        """Satisfy ZeroGPU, which accepts no app without a @spaces.GPU function. No answer needs a GPU."""


# isort: split
import static_space
from serving import launch

from modeling.classifier import LesionClassifier
from modeling.files import ModelFolderError, read_json
from modeling.model_folder import released_model

RETRY_EVERY_S = 30


def opened(model: str | None, revision: str | None, *, hosted: bool) -> LesionClassifier:
    """Open the model. A Space, whose owner is not there, waits while the Hub does not answer."""
    while True:
        try:
            return LesionClassifier.from_pretrained(model, revision)
        except ModelFolderError as error:
            if not hosted:
                raise
            print(f"error: {error} Trying again in {RETRY_EVERY_S} s.", file=sys.stderr, flush=True)
            time.sleep(RETRY_EVERY_S)


def main(arguments: list[str] | None = None) -> int:
    """Load the model and serve its page until the process is stopped."""
    parser = argparse.ArgumentParser(description="Serve the page of a skin lesion model.")
    parser.add_argument("--model", help="model folder or Hub repository; default: the released model")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    parser.add_argument("--port", type=int, default=port, help="default: GRADIO_SERVER_PORT, else 7860")
    parser.add_argument("--static", action="store_true", help="serve the page that computes in the browser (needs npm)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as after Ctrl-C, so that uploads are removed
    committed = Path(__file__).with_name("model.json")  # of `publish space`
    try:
        hosted = read_json(committed) if committed.is_file() and not options.model else {}
        model = options.model or hosted.get("model_id")
        revision = options.revision or hosted.get("revision")
        if options.static:
            static_space.serve(model or released_model(), options.port, revision=revision)
            return 0
        demo = launch(opened(model, revision, hosted=bool(hosted)), port=options.port)
    except (ModelFolderError, static_space.BuildError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, OverflowError) as error:
        print(f"error: port {options.port} cannot be used ({error}); give another with --port.", file=sys.stderr)
        return 2
    print(f"The page is at {str(demo.local_url).rstrip('/')}", flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
