"""Load the Space with good and bad requests: all good ones answered right and soon, memory and disk bounded.

    python tests/stress/space_soak.py --seconds 600 [--model FOLDER] [--clients 8]
    python tests/stress/space_soak.py --short        # for CI: the same kinds, half a minute

It starts the page as a host would (`python space/app.py`), talks to it over HTTP on loopback, and ends with a non-zero
status if a good request went wrong, if another visitor waited more than 1 s while costly requests arrive or more than 10 s
beside an abandoned batch, if the server holds over 10 % more memory at the end than after 20 requests or does not level off
(the median of the last third is over 3 % above that of the middle third), or if it keeps more than 200 MB of its visitors.
"""

import argparse
import contextlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.ports import free_port

MAX_GROWTH = 1.10  # from 20 requests on
MAX_LATE_GROWTH = 1.03  # of the last third over the middle one; medians, since one request may hold 100 MB for a moment
MAX_DISK_BYTES = 200_000_000
MAX_WAIT_S, MAX_WAIT_BESIDE_BATCH_S = 1.0, 10.0


class AnswerError(Exception):
    """The server answered a request with an error; the message is its sentence."""


class SpaceServer:
    """The page in a process of its own."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None, code: str | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = tempfile.TemporaryDirectory(prefix="space-test-")
        self.uploads = Path(self.folder.name) / "uploads"
        self.log = (Path(self.folder.name) / "log.txt").open("w+", encoding="utf-8")
        command = [sys.executable, "-c", code] if code else [sys.executable, str(ROOT / "space" / "app.py"), *arguments]
        self.process = subprocess.Popen(
            command,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            cwd=self.folder.name,
            env={
                **(environment or os.environ),
                "GRADIO_SERVER_PORT": str(self.port),
                "GRADIO_TEMP_DIR": str(self.uploads),
                "FORWARDED_ALLOW_IPS": "127.0.0.1",  # we are a proxy: each client has an address of its own
                "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'space'}",
            },
        )

    def __enter__(self) -> "SpaceServer":
        try:
            self.wait_for_page()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def wait_for_page(self, timeout_s: float = 300) -> None:
        """Wait until the server answers."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with status {self.process.returncode}:\n{self.output()[-3000:]}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/config", timeout=10).status_code == 200:
                    return
            time.sleep(0.2)
        raise TimeoutError(f"no page after {timeout_s} s:\n{self.output()[-3000:]}")

    def about(self, needle: str, timeout_s: float = 60) -> dict[str, Any]:
        """Return the page's facts about the model once they contain a text, or `{"error": …}` where the server answers so."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                told = SpaceClient(self.url).call("page_about")[0]
            except AnswerError as error:
                told = {"error": str(error)}
            if needle in json.dumps(told):
                return told
            if time.monotonic() > deadline:
                raise TimeoutError(f"{needle!r} is not in {told}")
            time.sleep(0.3)

    def output(self) -> str:
        """Return what the server printed."""
        return Path(self.log.name).read_text(encoding="utf-8")

    def memory_bytes(self) -> int:
        """Return the resident memory of the server and its children."""
        process = psutil.Process(self.process.pid)
        return sum(part.memory_info().rss for part in [process, *process.children(recursive=True)])

    def disk_bytes(self) -> int:
        """Return what the server keeps of its visitors."""
        total = 0
        for folder, _, names in os.walk(self.uploads):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # moved or swept since the folder was listed
                    total += (Path(folder) / name).stat().st_size
        return total

    def close(self) -> None:
        """End the server."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        self.folder.cleanup()


class SpaceClient:
    """One visitor's program, speaking the protocol that README shows with curl."""

    def __init__(self, url: str, address: str = "10.0.0.1") -> None:
        self.http = httpx.Client(base_url=f"{url}/gradio_api", timeout=120, headers={"X-Forwarded-For": address})
        self.url = url

    def upload(self, data: bytes, name: str = "photo.jpg") -> dict[str, Any]:
        """Send a file, and return how requests refer to it."""
        answer = self.http.post("/upload", files={"files": (name, data)})
        if answer.status_code != 200:
            raise AnswerError(answer.text)
        return {"path": answer.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def start(self, endpoint: str, *data: Any) -> str:
        """Ask, and return the ticket under which the answer can be had."""
        answer = self.http.post(f"/call/{endpoint}", json={"data": list(data)})
        if answer.status_code != 200:
            raise AnswerError(answer.text)
        return str(answer.json()["event_id"])

    def call(self, endpoint: str, *data: Any) -> list[Any]:
        """Ask, wait, and return the outputs."""
        ticket = self.start(endpoint, *data)
        event = ""
        with self.http.stream("GET", f"/call/{endpoint}/{ticket}") as lines:
            for line in lines.iter_lines():
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                elif line.startswith("data: ") and event == "complete":
                    return json.loads(line.removeprefix("data: "))
                elif line.startswith("data: ") and event == "error":
                    content = json.loads(line.removeprefix("data: "))
                    raise AnswerError(str((content or {}).get("error")))
        raise AnswerError("the answer ended early")

    def classify(self, data: bytes, name: str = "photo.jpg") -> dict[str, Any]:
        """Return the answer for one photo."""
        return self.call("classify", self.upload(data, name))[0]

    def explain(self, data: bytes, diagnosis: str = "") -> dict[str, Any]:
        """Return the answer with evidence for one photo, without the picture."""
        return self.call("explain", self.upload(data), diagnosis)[0]

    def batch(self, files: dict[str, bytes]) -> dict[str, Any]:
        """Return the table for many files."""
        return self.call("batch", [self.upload(data, name) for name, data in files.items()])[0]

    def lesion(self, *sent: dict[str, Any], priors: str = "equal") -> dict[str, Any]:
        """Return what the page shows for uploaded photos of one lesion."""
        return self.call("page_answer", list(sent), priors)[0]


def photos(n: int) -> list[bytes]:
    """Make n different pictures, as JPEG."""
    pictures = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((400, 300), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        pictures.append(buffer.getvalue())
    return pictures


def large_photo() -> bytes:
    """Make a picture of few bytes whose 51 megapixels take seconds."""
    buffer = io.BytesIO()
    Image.new("L", (7100, 7100)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def longest_wait(url: str, ask: Callable[[SpaceClient], Any], costly: Callable[[], Any]) -> float:
    """Let one visitor ask again and again while another sends something costly; return the longest wait in seconds."""
    done = threading.Event()
    waits: list[float] = []

    def work() -> None:
        client = SpaceClient(url, address="9.9.9.9")
        while not done.is_set() or not waits:
            started = time.monotonic()
            ask(client)
            waits.append(time.monotonic() - started)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        costly()
    finally:
        done.set()
        thread.join()
    return max(waits)


def wait_alone(url: str) -> float:
    """Return the longest wait of the only visitor: more than a tenth of a second is a busy machine's own."""
    photo = photos(1)[0]
    return longest_wait(url, lambda client: client.classify(photo), lambda: time.sleep(3))


def wait_beside_costly_requests(url: str) -> float:
    """Return the longest wait of a visitor for one photo while another sends requests that are costly to take apart."""
    attacker = SpaceClient(url, address="8.8.8.8")
    photo = photos(1)[0]
    sent = attacker.upload(photo)

    one = json.dumps(sent).encode()
    # Made beforehand, so that the other visitor, a thread of this process, does not wait for this one's bodies.
    bodies = [b'{"data": [[' + b", ".join([one] * n) + b"]]}" for n in (200, 1000, 2000, 20_000, 180_000)]
    bodies += [b'{"params": [' + b"1," * 10_000_000 + b"1]}", b"[" * 100_000, b'{"data": ' + b"[" * 100_000]

    def costly() -> None:
        for body in bodies:
            for route in ("/call/batch", "/call/classify", "/mcp/", "/queue/join"):
                with contextlib.suppress(httpx.TransportError):  # refused while it is still being sent
                    attacker.http.post(route, content=body, headers={"Content-Type": "application/json"})

    return longest_wait(url, lambda client: client.classify(photo), costly)


def wait_beside_abandoned_batches(url: str) -> float:
    """Return the longest wait for a batch of one photo, after another visitor left four batches of large images."""
    photo = photos(1)[0]

    def abandon() -> None:
        attacker = SpaceClient(url, address="8.8.8.8")
        large = [attacker.upload(large_photo(), "large.png")] * 40
        *_, ticket = (attacker.start("batch", large) for _ in range(4))
        with (
            contextlib.suppress(httpx.ReadTimeout),
            attacker.http.stream("GET", f"/call/batch/{ticket}", timeout=2),
        ):
            time.sleep(1)  # listens for a while, and leaves
        attacker.http.close()
        time.sleep(8)

    return longest_wait(url, lambda client: client.batch({"photo.jpg": photo}), abandon)


class Soak:
    """Clients in threads that keep asking, and what came of it."""

    def __init__(self, server: SpaceServer, *, n_clients: int, seed: int = 0) -> None:
        self.server, self.n_clients, self.seed = server, n_clients, seed
        self.photos = photos(6)
        self.three = {f"{number}.jpg": data for number, data in enumerate(self.photos[:3])}
        alone = SpaceClient(server.url)
        self.expected_classify = [alone.classify(data) for data in self.photos]
        self.expected_explain = [alone.explain(data) for data in self.photos]
        self.expected_batch = alone.batch(self.three)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.lock = threading.Lock()
        self.memory_after_20 = 0
        self.max_disk = 0

    def run(self, *, seconds: float = 1e9, requests: int = 10**9, bad_share: float = 0.4) -> dict[str, Any]:
        """Keep asking until the time or the number of requests is reached, and return the figures."""
        started, deadline = time.monotonic(), time.monotonic() + seconds
        tickets = iter(range(requests))

        def work(number: int) -> None:
            rng = random.Random(f"{self.seed}-{number}")
            client = SpaceClient(self.server.url, address=f"10.0.{self.seed}.{number}")
            while time.monotonic() < deadline:
                with self.lock:
                    if next(tickets, None) is None:
                        return
                kind = "?"
                try:
                    if rng.random() < bad_share:
                        kind = rng.choice(sorted(BAD))
                        BAD[kind](self, client, rng)
                    else:
                        kind = rng.choice(("classify", "classify", "explain", "explain", "batch"))
                        self.good(kind, client, rng)
                except Exception as error:
                    with self.lock:
                        self.wrong.append(f"{kind}: {type(error).__name__}: {error}")
                with self.lock:
                    self.counts[kind] += 1
                    if self.counts.total() == 20:
                        self.memory_after_20 = self.server.memory_bytes()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(self.n_clients)]
        for thread in threads:
            thread.start()
        memory: list[int] = []
        while any(thread.is_alive() for thread in threads):
            self.max_disk = max(self.max_disk, self.server.disk_bytes())
            memory.append(self.server.memory_bytes())
            time.sleep(0.5)
        for thread in threads:
            thread.join()
        good = sum(count for kind, count in self.counts.items() if kind not in BAD)
        thirds = [round(float(np.median(part)) / 1e6) for part in np.array_split(memory, 3) if len(part)]
        return {
            "seconds": round(time.monotonic() - started, 1),
            "clients": self.n_clients,
            "requests": self.counts.total(),
            "good": good,
            "bad": self.counts.total() - good,
            "wrong": self.wrong,
            "kinds": dict(sorted(self.counts.items())),
            "memory_after_20_mb": round(self.memory_after_20 / 1e6),
            "memory_at_end_mb": round(self.server.memory_bytes() / 1e6),
            "memory_of_thirds_mb": thirds,
            "max_disk_mb": round(self.max_disk / 1e6, 1),
        }

    def good(self, kind: str, client: SpaceClient, rng: random.Random) -> None:
        """Ask something whose answer is known, and compare."""
        index = rng.randrange(len(self.photos))
        if kind == "classify":
            answer, expected = client.classify(self.photos[index]), self.expected_classify[index]
        elif kind == "explain":
            answer, expected = client.explain(self.photos[index]), self.expected_explain[index]
        else:
            answer, expected = client.batch(self.three), self.expected_batch
        if answer != expected:
            raise AssertionError("another answer than the one given alone")

    def refused(self, client: SpaceClient, says: str, endpoint: str, *data: Any) -> None:
        """Ask something bad, and expect a sentence that contains `says`."""
        try:
            client.call(endpoint, *data)
        except AnswerError as error:
            if says in str(error):
                return
            raise AssertionError(f"said {str(error)[:200]!r} instead of {says!r}") from error
        raise AssertionError("a bad request was answered")

    def no_picture(self, client: SpaceClient, rng: random.Random) -> None:
        data = rng.choice((b"", b"<html>no picture</html>", b"\xff\xd8\xff" + rng.randbytes(500)))
        self.refused(client, "photo.jpg", "classify", client.upload(data))

    def truncated(self, client: SpaceClient, rng: random.Random) -> None:
        data = rng.choice(self.photos)
        self.refused(client, "photo.jpg", "explain", client.upload(data[: rng.randrange(50, len(data) // 2)]), "")

    def address(self, client: SpaceClient, rng: random.Random) -> None:
        photo = {"path": "http://192.0.2.1/x.jpg", "meta": {"_type": "gradio.FileData"}}
        self.refused(client, "fetches nothing", "classify", photo)

    def other_file(self, client: SpaceClient, rng: random.Random) -> None:
        path = rng.choice(("/etc/passwd", str(ROOT / "space" / "app.py"), "../../../etc/passwd"))
        self.refused(client, "", "classify", {"path": path, "meta": {"_type": "gradio.FileData"}})
        if client.http.get(f"/file={path}").status_code == 200:
            raise AssertionError(f"{path} was served")

    def nonsense(self, client: SpaceClient, rng: random.Random) -> None:
        if client.http.post("/call/classify", content=b"{" * 1000).status_code < 400:
            raise AssertionError("nonsense was accepted")
        self.refused(client, "has no", "explain", client.upload(self.photos[0]), "<script>")

    def no_text(self, client: SpaceClient, rng: random.Random) -> None:
        odd = rng.choice(
            ([], [None], [3], ["x" * 100_000], [{"path": ["x"]}], [{"path": "/tmp/\0"}], [[[]]], [1, 2, 3, 4])
        )
        self.refused(client, "", rng.choice(("classify", "explain", "batch", "page_answer")), *odd)
        for route in ("/call/nothing", "/run/predict", "/custom_component/%0aFAKE LINE/server/component/index.js"):
            if client.http.post(route, json={"data": odd}).status_code != 404:
                raise AssertionError(f"{route} was answered")

    def abandoned(self, client: SpaceClient, rng: random.Random) -> None:
        client.start("explain", client.upload(rng.choice(self.photos)), "")

    def cut_upload(self, client: SpaceClient, rng: random.Random) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=10) as connection:
            head = "POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            part = '--b\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
            connection.sendall(f"{head}Content-Length: 5000000\r\n\r\n{part}".encode() + rng.randbytes(200_000))


BAD = {
    name: getattr(Soak, name)
    for name in (
        *("no_picture", "truncated", "address", "other_file"),
        *("nonsense", "no_text", "abandoned", "cut_upload"),
    )
}


@contextlib.contextmanager
def model_folder(given: str | None) -> Iterator[Path]:
    """Yield the given model folder, or a small network with random weights."""
    if given:
        yield Path(given)
        return
    sys.path.insert(0, str(ROOT))
    from support.untrained import untrained_folder

    with tempfile.TemporaryDirectory() as folder:
        lesion = {"package_version": "0", "run_id": "soak", "dataset": "demo", "synthetic": True}
        yield untrained_folder(Path(folder) / "model", backbone="efficientnet_b0", size_px=224, **lesion)


def main() -> int:
    """Run the soak and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--short", action="store_true", help="for CI: 10 seconds, 4 clients")
    parser.add_argument("--model", help="model folder; by default an EfficientNet-B0 with random weights")
    options = parser.parse_args()
    seconds, clients = (10.0, 4) if options.short else (options.seconds, options.clients)
    with model_folder(options.model) as folder, SpaceServer("--model", str(folder)) as server:
        waits = {
            "wait_alone_s": round(wait_alone(server.url), 2),
            "wait_beside_costly_requests_s": round(wait_beside_costly_requests(server.url), 2),
            "wait_beside_abandoned_batches_s": round(wait_beside_abandoned_batches(server.url), 2),
        }
        figures = Soak(server, n_clients=clients).run(seconds=seconds)
        faults = [line for line in server.output().splitlines() if "fault" in line or "Traceback" in line]
    wrong = figures["wrong"]
    print(json.dumps({**figures, **waits, "faults": faults[:20], "wrong": wrong[:20], "n_wrong": len(wrong)}, indent=2))
    _, middle, last = figures["memory_of_thirds_mb"]
    failed = {
        "a request went wrong": bool(wrong or faults),
        "a visitor waited": waits["wait_beside_costly_requests_s"] > MAX_WAIT_S
        or waits["wait_beside_abandoned_batches_s"] > MAX_WAIT_BESIDE_BATCH_S,
        "memory or disk grew": figures["max_disk_mb"] > MAX_DISK_BYTES / 1e6
        or (
            not options.short  # too few requests to level off
            and (
                figures["memory_at_end_mb"] > MAX_GROWTH * figures["memory_after_20_mb"]
                or last > MAX_LATE_GROWTH * middle
            )
        ),
    }
    print("; ".join(reason for reason, true in failed.items() if true) or "all is well")
    return 1 if any(failed.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
