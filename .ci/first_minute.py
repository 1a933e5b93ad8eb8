"""README's first block in a fresh environment: time, size, and an answer about a photograph without torch.

python .ci/first_minute.py EMPTY_FOLDER          # a real photograph where LESION_TEST_DATA has one, else a synthetic one
"""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from support.ports import free_port

MAX_SECONDS, MAX_MB = 60, 500
TOOLS = ("pip", "setuptools")  # of every virtual environment


def main() -> int:
    """Return 0 if both bars are met."""
    folder = Path(sys.argv[1])
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python, port = folder / "bin" / "python", free_port()
    started = time.monotonic()
    subprocess.run([python, "-m", "pip", "install", "-q", "-e", ".[space]"], cwd=ROOT, check=True)
    installed = time.monotonic() - started
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen([python, "space/app.py", "--port", str(port)], cwd=ROOT, env=environment)
    try:
        answer = ask(f"http://127.0.0.1:{port}", photograph(folder), server)
    finally:
        server.terminate()
        server.wait(30)
    seconds = time.monotonic() - started
    torch = subprocess.run([python, "-c", "import torch"], cwd="/", capture_output=True, check=False).returncode == 0
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", *TOOLS], check=True)
    megabytes = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"verdict: {answer['verdict']}")
    print(
        f"{seconds:.0f} s (install {installed:.0f} s), {megabytes:.0f} MB, torch {'installed' if torch else 'not installed'}"
    )
    met = {
        f"at most {MAX_SECONDS} s": seconds <= MAX_SECONDS,
        f"at most {MAX_MB} MB": megabytes <= MAX_MB,
        "no torch": not torch,
    }
    for bar, ok in met.items():
        print(f"{'met' if ok else 'MISSED'}: {bar}")
    return 0 if all(met.values()) else 1


def photograph(scratch: Path) -> Path:
    """Return a dermoscopic photograph, or a synthetic spot where there are no real data."""
    originals = sorted(Path(os.environ.get("LESION_TEST_DATA", "/nowhere")).glob("originals/*.jpg"))
    if originals:
        return originals[0]
    path = scratch / "synthetic.png"
    draw = (
        "import sys; from PIL import Image, ImageDraw; image = Image.new('RGB', (600, 450), (222, 178, 158)); "
        "ImageDraw.Draw(image).ellipse((180, 110, 420, 340), fill=(96, 58, 44)); image.save(sys.argv[1])"
    )
    subprocess.run([scratch / "bin" / "python", "-c", draw, path], check=True)
    return path


def ask(address: str, photo: Path, server: subprocess.Popen) -> dict:
    """Return the answer of /classify, waiting until the server is up."""
    boundary = "photo"
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{photo.name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    body += photo.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    while True:
        try:
            sent = post(f"{address}/gradio_api/upload", body, f"multipart/form-data; boundary={boundary}")
            break
        except OSError:
            if server.poll() is not None:
                raise RuntimeError("the page did not start") from None
            time.sleep(0.2)
    (path,) = json.loads(sent)
    question = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, "equal"]}
    call = f"{address}/gradio_api/call/classify"
    event = json.loads(post(call, json.dumps(question).encode(), "application/json"))["event_id"]
    with urllib.request.urlopen(f"{call}/{event}", timeout=60) as stream:
        lines = stream.read().decode().splitlines()
    answer = lines[lines.index("event: complete") + 1].removeprefix("data: ")
    return json.loads(answer)[0]


def post(address: str, body: bytes, content_type: str) -> bytes:
    """Return the reply to a POST."""
    request = urllib.request.Request(address, body, {"Content-Type": content_type})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return reply.read()


if __name__ == "__main__":
    sys.exit(main())
