"""Start what `publish space` sends in an environment as the Hub makes it, and let it classify, explain and batch.

python .ci/space.py PYTHON_OF_THAT_ENVIRONMENT MODEL_FOLDER

The environment: `pip install "gradio[oauth,mcp]==SDK_VERSION" spaces -r space/requirements.txt`, with the sdk_version of
space/README.md.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gradio_client import Client, handle_file

from support.hub import HubServer
from support.ports import free_port

STARTS_WITHIN_S = 120


def main() -> int:
    """Return 0 if all of it answers."""
    python, folder = sys.argv[1], Path(sys.argv[2])
    image = next((folder / "examples").glob("*.jpg")).resolve()
    look_for_torch = (
        "import importlib.util as u; print([n for n in ('torch', 'timm', 'pytorch_grad_cam') if u.find_spec(n)])"
    )
    found = subprocess.run([python, "-c", look_for_torch], cwd="/", capture_output=True, text=True, check=True).stdout
    if found.strip() != "[]":
        raise RuntimeError(f"the Space's environment has {found}")
    with tempfile.TemporaryDirectory() as name, HubServer() as hub:
        home = Path(name)
        hub.add_repo("me/lesions", folder)
        environment = {**os.environ, **hub.env(home=home / "home")}
        push = ["-m", "modeling.publish", "space", "--model_id", "me/lesions", "--space_id", "me/page"]
        subprocess.run([sys.executable, *push], cwd=ROOT, check=True, env=environment)
        for path, data in hub.repo("me/page", "space").files().items():
            (home / "page" / path).parent.mkdir(parents=True, exist_ok=True)
            (home / "page" / path).write_bytes(data)
        port = free_port()
        environment |= {"GRADIO_SERVER_PORT": str(port)}  # the model is named by model.json of what was pushed
        environment.pop("PYTHONPATH", None)
        server = subprocess.Popen([python, "app.py"], cwd=home / "page", env=environment)
        try:
            ask(client_of(server, port), image)
        finally:
            server.terminate()
            server.wait(30)
    return 0


def ask(client: Client, image: Path) -> None:
    """Let the three endpoints answer about one image; they must agree."""
    answer = client.predict(handle_file(image), api_name="/classify")
    explained, overlay = client.predict(handle_file(image), api_name="/explain")
    batch = client.predict([handle_file(image), handle_file(image)], api_name="/batch")
    diagnoses = [answer["diagnosis"], explained["diagnosis"], *(row["diagnosis"] for row in batch["rows"])]
    if len(diagnoses) != 4 or len(set(diagnoses)) != 1 or not Path(overlay).stat().st_size:
        raise RuntimeError(f"the endpoints do not agree: {diagnoses}")
    print(f"the Space without torch answers: {answer['verdict']}")


def client_of(server: subprocess.Popen[bytes], port: int) -> Client:
    """Connect as soon as the page is there."""
    for _ in range(STARTS_WITHIN_S):
        if server.poll() is not None:
            raise RuntimeError(f"the Space ended with status {server.returncode}")
        with contextlib.suppress(OSError):  # nobody listens yet
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return Client(f"http://127.0.0.1:{port}", verbose=False)
        time.sleep(1)
    raise RuntimeError(f"the Space did not start within {STARTS_WITHIN_S} s")


if __name__ == "__main__":
    sys.exit(main())
