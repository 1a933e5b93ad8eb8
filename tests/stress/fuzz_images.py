"""Fuzz `decode_image` for a bounded time: `python tests/stress/fuzz_images.py --seconds 60`.

The corpus is mutated, half of the time at random and, where atheris is installed, half of the time guided by coverage.
The work is done in a child process, so that a crash or a hang inside a C library is found as well. Whatever raises
anything but ImageError, crashes, takes longer than 20 s or more than 2 GB is kept in `fuzz_findings/` (or `--output`),
and the exit status is 1.
"""

import argparse
import contextlib
import importlib.util
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]  # the package, and support

# `modeling.images` and Pillow are imported where they are used: atheris has to see them being imported.

MAX_SECONDS_PER_INPUT = 20
MAX_BYTES = 2 * 2**30  # of resident memory; the decoder promises to stay under 1 GB
MAX_SEED_BYTES = 100_000  # larger files of the corpus only slow the search down


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="how long to search")
    parser.add_argument("--seed", type=int, default=0, help="of the random mutations")
    parser.add_argument("--output", type=Path, default=Path("fuzz_findings"), help="where inputs that fail are kept")
    parser.add_argument("--work", choices=["random", "atheris"], help=argparse.SUPPRESS)  # set for child processes
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options)

    from support.corpus import make_corpus

    engines = ["random", "atheris"] if importlib.util.find_spec("atheris") else ["random"]
    with tempfile.TemporaryDirectory() as folder:
        seeds = Path(folder) / "seeds"
        for file in make_corpus(seeds):
            if file.path.stat().st_size > MAX_SEED_BYTES:
                file.path.unlink()
        return take_turns(engines, Path(folder), options)


def take_turns(engines: list[str], folder: Path, options: argparse.Namespace, *, script: str = __file__) -> int:
    """Give each engine an equal part of the time, started again after each finding; print them and return the exit status."""
    findings: list[str] = []
    tried = 0
    for engine in engines:
        until = time.monotonic() + options.seconds / len(engines)
        seed = options.seed
        while time.monotonic() < until:
            seconds = until - time.monotonic()
            count, finding = supervise(engine, folder, seconds, seed, options.output, script=script)
            print(f"{engine}: {count} inputs, {finding or 'nothing found'}", flush=True)
            tried += count
            findings += [finding] if finding else []
            seed += 1
    print(f"{tried} inputs tried in {options.seconds:.0f} s by {' and '.join(engines)}: {len(findings)} findings")
    return 1 if findings else 0


def supervise(engine: str, folder: Path, seconds: float, seed: int, output: Path, *, script: str) -> tuple[int, str]:
    """Run one child process until the time is up or it fails; return the inputs tried and what was found."""
    current, count_file = folder / "current", folder / "count"
    current.write_bytes(b"")
    count_file.write_text("0")
    log = folder / "log"
    command = [sys.executable, script, "--work", engine, "--folder", str(folder)]
    with log.open("wb") as stderr:
        child = subprocess.Popen(
            [*command, "--seconds", str(seconds), "--seed", str(seed)], stdout=stderr, stderr=subprocess.STDOUT
        )
        finding = ""
        deadline = time.monotonic() + seconds + MAX_SECONDS_PER_INPUT + 20  # 20 s to start and to stop
        while child.poll() is None:
            time.sleep(0.2)
            # `current` is rewritten for every input
            stuck = current.stat().st_size > 0 and time.time() - current.stat().st_mtime > MAX_SECONDS_PER_INPUT
            if stuck or time.monotonic() > deadline:
                child.kill()
                finding = f"hang of more than {MAX_SECONDS_PER_INPUT} s"
        if child.wait() and not finding:
            finding = f"exit status {child.returncode}"
    if finding:
        output.mkdir(parents=True, exist_ok=True)
        kept = output / f"{engine}-{seed}-{zlib.crc32(current.read_bytes()):08x}"
        kept.write_bytes(current.read_bytes())
        kept.with_suffix(".txt").write_bytes(log.read_bytes())
        finding += f", input and log kept as {kept}"
    return int(count_file.read_text() or 0), finding


def work(options: argparse.Namespace) -> int:
    warnings.simplefilter("ignore")
    if options.work == "atheris":
        import atheris

        with atheris.instrument_imports(include=["PIL", "modeling"]):
            from modeling.images import ImageError, decode_image
    else:
        from modeling.images import ImageError, decode_image

    seeds, count_file = options.folder / "seeds", options.folder / "count"
    current = (options.folder / "current").open("r+b", buffering=0)
    count = 0

    def try_one(data: bytes) -> None:
        nonlocal count
        count += 1
        current.seek(0)
        current.truncate()
        current.write(data)
        with contextlib.suppress(ImageError):
            decode_image(data)
        if count % 50 == 0:
            count_file.write_text(str(count))
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MAX_BYTES:
            raise MemoryError(f"this input took the process over {MAX_BYTES // 2**20} MB")

    if options.work == "atheris":
        limits = [f"-max_total_time={max(1, int(options.seconds))}", f"-timeout={MAX_SECONDS_PER_INPUT}"]
        search = [f"-seed={options.seed + 1}", f"-max_len={MAX_SEED_BYTES}", f"-rss_limit_mb={MAX_BYTES // 2**20}"]
        atheris.Setup([sys.argv[0], *limits, *search, f"-artifact_prefix={options.folder}/", str(seeds)], try_one)
        atheris.Fuzz()  # ends the process
        return 0

    rng = random.Random(options.seed)
    contents = [path.read_bytes() for path in sorted(seeds.iterdir())]
    until = time.monotonic() + options.seconds
    while time.monotonic() < until:
        try_one(mutated(rng, contents))
    return 0


def mutated(rng: random.Random, contents: list[bytes]) -> bytes:
    """Return one of the files with one to eight changes."""
    data = bytearray(rng.choice(contents))
    for _ in range(rng.randint(1, 8)):
        # Structure is mostly at the start, so half of the changes go there.
        end = min(len(data), 300) if rng.random() < 0.5 else len(data)
        at, length = rng.randint(0, max(0, end - 1)), rng.choice([1, 2, 4, 12, 50])
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:  # numbers that parsers stumble over
                number = rng.choice([0, 1, 8, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, len(data)])
                code = rng.choice(["<L", ">L"] if number > 0xFFFF else ["<L", ">L", "<H", ">H"])
                piece = struct.pack(code, number)
                data[at : at + len(piece)] = piece
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length] * rng.choice([1, 2, 100])
            case 4:  # a piece of another file
                other = rng.choice(contents)
                start = rng.randint(0, len(other))
                data[at : at + length] = other[start : start + length]
            case 5:
                data[at : at + length] = rng.randbytes(length)
    # A checksum that is wrong would end most PNGs at once.
    return with_checksums(bytes(data)) if data.startswith(b"\x89PNG") and rng.random() < 0.9 else bytes(data)


def with_checksums(png: bytes) -> bytes:
    """Return the PNG with the checksum of every chunk made right."""
    pieces, position = [png[:8]], 8
    while position + 12 <= len(png):
        end = position + 8 + int.from_bytes(png[position : position + 4], "big")
        chunk = png[position:end]
        pieces += [chunk, struct.pack(">L", zlib.crc32(chunk[4:]))]
        position = end + 4
    return b"".join([*pieces, png[position:]])


if __name__ == "__main__":
    sys.exit(main())
