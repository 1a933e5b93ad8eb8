"""Prediction and explanation beside the fastest engines on this machine: EfficientNet-B0, 224 px, 8 diagnoses, on a CPU.

  python benchmarks/prediction.py

torch, …         the network of `model.safetensors` on ready tensors, channels last, in inference mode
compiled, …      the same through torch.compile with freezing
onnxruntime, …   `onnx/model.onnx` on ready tensors: the limit of what this package serves with; also with 8-bit weights
openvino, …      the same file in OpenVINO, where it is installed
predict, …       LesionClassifier.predict: one JPEG file, and lists of them; with the torch engine for comparison
explain          LesionClassifier.explain of one image in memory: prediction and heat maps of all 8 diagnoses
space, …         the Space's whole answer for one upload of 1024x768, with all heat maps, as JSON text, without HTTP
decode, …        Pillow's decoding alone
"""

from modeling.runtime import prepare_process

prepare_process()  # before torch is loaded, as the command line and the Space do; see side_by_side.py

# isort: split
import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image
from side_by_side import Row, in_turn, make_model, ratio, show, write

sys.path.append(str(Path(__file__).parents[1] / "space"))
import answers

from modeling.classifier import LesionClassifier
from modeling.model_folder import ONNX_NAME, WEIGHTS_NAME, read_config
from modeling.network import load_network

BATCH_SIZES = (1, 4, 8, 16, 32)
COMPILED_SIZES = (1, 16)  # each takes a minute to compile
SIZE_PX = 224
# A forward pass on ready tensors, float32 (B, 3, S, S).
Forward = Callable[[np.ndarray], object]
Measured = dict[str, list[float]]  # milliseconds an image, of each round


def timed(run: Callable[[], object], n_images: int) -> Callable[[], float]:
    """Return a function that measures milliseconds an image."""

    def measure() -> float:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) / n_images * 1000

    return measure


def in_batches(forward: Forward, pixel_values: np.ndarray, size: int) -> Callable[[], None]:
    def run() -> None:
        for start in range(0, len(pixel_values), size):
            forward(pixel_values[start : start + size])

    return run


def torch_forward(folder: Path, *, compiled: bool) -> Forward:
    network = load_network(folder / WEIGHTS_NAME, read_config(folder)).to(memory_format=torch.channels_last)
    if compiled:
        from torch._inductor import config

        config.freezing = True
        network = torch.compile(network)

    @torch.inference_mode()
    def forward(pixel_values: np.ndarray) -> object:
        return network(torch.from_numpy(pixel_values))

    return forward


def onnx_forward(path: Path) -> Forward:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixel_values: session.run(["logits"], {"pixel_values": pixel_values})


def openvino_forward(path: Path) -> Forward:
    import openvino

    compiled = openvino.compile_model(path, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    return lambda pixel_values: compiled([pixel_values])["logits"]


def quantized(path: Path, pixel_values: np.ndarray) -> Path:
    """Write the network with 8-bit weights and activations beside it."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(pixel_values)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {"pixel_values": image[None]}

    prepared, target = path.with_name("prepared.onnx"), path.with_name("int8.onnx")
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    types = ["Conv", "Gemm", "MatMul"]
    quantize_static(prepared, target, Reader(), QuantFormat.QDQ, per_channel=True, op_types_to_quantize=types)
    return target


def make_files(folder: Path, n: int) -> dict[int, list[Path]]:
    """Blots of colour with fine noise: a JPEG of 1024 px takes about 300 kB, as ISIC's photographs do."""
    rng = np.random.default_rng(0)
    files: dict[int, list[Path]] = {SIZE_PX: [], 1024: []}
    for number in range(n):
        blots = Image.fromarray(rng.integers(60, 200, (9, 9, 3), dtype=np.uint8))
        for size, paths in files.items():
            pixels = np.asarray(blots.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
            noisy = Image.fromarray((pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8))
            paths.append(folder / f"{number}-{size}.jpg")
            noisy.save(paths[-1], quality=90)
    return files


def engine_runs(folder: Path, pixel_values: np.ndarray, *, compile_too: bool) -> dict[str, Callable[[], float]]:
    """Every engine on ready tensors, at each batch size."""
    path = folder / ONNX_NAME
    engines: dict[str, Forward] = {
        "torch": torch_forward(folder, compiled=False),
        "onnxruntime": onnx_forward(path),
        "onnxruntime int8": onnx_forward(quantized(path, pixel_values[:16])),
    }
    if compile_too:
        engines["compiled"] = torch_forward(folder, compiled=True)
    if importlib.util.find_spec("openvino"):
        engines["openvino"] = openvino_forward(path)
    return {
        f"{name}, batches of {size}": timed(in_batches(forward, pixel_values, size), len(pixel_values))
        for name, forward in engines.items()
        for size in (COMPILED_SIZES if name == "compiled" else BATCH_SIZES)
    }


def serving_runs(folder: Path, files: dict[int, list[Path]]) -> dict[str, Callable[[], float]]:
    """The calls of a user."""
    ours, by_torch = (LesionClassifier.from_pretrained(folder, device="cpu", engine=name) for name in ("onnx", "torch"))
    small, n = files[SIZE_PX], len(files[SIZE_PX])
    some = small[: max(8, n // 4)]
    images = [Image.open(path).convert("RGB") for path in some]
    runs = {
        "predict, one JPEG of 224 px": timed(lambda: [ours.predict(path) for path in some], len(some)),
        "explain, one image": timed(lambda: [ours.explain(image) for image in images], len(images)),
        "decode, JPEG of 224 px": timed(lambda: [np.asarray(Image.open(path).convert("RGB")) for path in small], n),
    }
    upload = answers.Photo(str(Path(small[0]).with_name("upload.jpg")), "upload.jpg")
    Image.open(files[1024][0]).resize((1024, 768)).save(upload.source, quality=90)
    runs["space, upload of 1024x768"] = timed(
        lambda: [json.dumps(answers.answer_lesion(ours, [upload])) for _ in range(8)], 8
    )
    runs["decode, upload of 1024x768"] = timed(
        lambda: [np.asarray(Image.open(upload.source).convert("RGB")) for _ in range(8)], 8
    )
    for size, paths in files.items():
        runs[f"predict, list of JPEGs of {size} px"] = timed(lambda paths=paths: ours.predict(paths), n)
        runs[f"predict by torch, list of JPEGs of {size} px"] = timed(lambda paths=paths: by_torch.predict(paths), n)
        runs[f"decode and resize, JPEGs of {size} px, one core"] = timed(
            lambda paths=paths: [ours.preprocess(path) for path in paths], n
        )
    return runs


def ratios(values: Measured) -> tuple[dict[str, float], int]:
    """Return the figures that bars are on, and ONNX Runtime's best batch size."""
    best = min(BATCH_SIZES, key=lambda size: float(np.median(values[f"onnxruntime, batches of {size}"])))
    bare, limit = "onnxruntime, batches of 1", f"onnxruntime, batches of {best}"
    listed = "predict, list of JPEGs of 224 px"

    def with_decoding(decode: str) -> Measured:
        both = zip(values[bare], values[decode], strict=True)
        return {**values, "sum": [one + other for one, other in both]}

    figures = {
        "one": ratio(with_decoding("decode, JPEG of 224 px"), "predict, one JPEG of 224 px", "sum"),
        "explain": ratio(values, "explain, one image", bare),
        "list": ratio(values, limit, listed),
        "list by torch's": ratio(values, "predict by torch, list of JPEGs of 224 px", listed),
        "space": ratio(with_decoding("decode, upload of 1024x768"), "space, upload of 1024x768", "sum"),
        "int8": max(ratio(values, limit, f"onnxruntime int8, batches of {size}") for size in BATCH_SIZES),
    }
    return figures, best


def table_rows(values: Measured, figures: dict[str, float], best: int) -> list[Row]:
    """Return the rows of the table in docs/results.md."""

    def ms(name: str) -> str:
        return f"{np.median(values[name]):.1f} ms"

    one, explained, share, gain, space, int8 = figures.values()
    engines = sorted({name.partition(",")[0] for name in values if ", batches of " in name})
    rows: list[Row] = [
        (
            f"{engine}, bare: one image; an image in its best batch",
            f"{ms(f'{engine}, batches of 1')}; "
            f"{min(np.median(each) for name, each in values.items() if name.startswith(f'{engine}, batches')):.1f} ms",
            "",
            None,
        )
        for engine in engines
    ]
    return [
        *rows,
        ("`predict`, one JPEG of 224 px, by onnxruntime and decoding", f"{one:.2f}", "at most 1.25", one <= 1.25),
        ("`explain`, 8 diagnoses, by onnxruntime", f"{explained:.2f}", "at most 1.4", explained <= 1.4),
        (
            f"`predict`, list of JPEGs of 224 px ({ms('predict, list of JPEGs of 224 px')} an image), throughput by "
            f"onnxruntime's best (batches of {best})",
            f"{share:.3f}", "at least 0.85", share >= 0.85,
        ),
        ("… by the torch engine's", f"{gain:.2f}", "at least 1.3", gain >= 1.3),
        (
            "`predict`, list of JPEGs of 1024 px (decoding and resizing one: "
            f"{ms('decode and resize, JPEGs of 1024 px, one core')} of one core)",
            f"{ms('predict, list of JPEGs of 1024 px')} an image", "", None,
        ),
        (
            "the Space's answer for an upload of 1024x768, without HTTP, by onnxruntime and decoding",
            f"{space:.2f}", "at most 3", space <= 3,
        ),
        ("8-bit weights, best throughput by onnxruntime's best", f"{int8:.2f}", "kept from 1.5 on", None),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="in a list")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out, which takes minutes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_model(Path(scratch) / "model", "efficientnet_b0", SIZE_PX)
        files = make_files(Path(scratch), options.images)
        preprocess = LesionClassifier.from_pretrained(folder, device="cpu").preprocess
        pixel_values = np.stack([preprocess(path) for path in files[SIZE_PX]])
        runs = engine_runs(folder, pixel_values, compile_too=not options.no_compile) | serving_runs(folder, files)
        values = in_turn(runs, options.rounds)

    show(values, "milliseconds an image")
    figures, best = ratios(values)
    print()
    print("\n".join(f"{name}: {value:.2f}" for name, value in figures.items()))
    rows = table_rows(values, figures, best)
    bars = {f"{what}: {bar}": met for what, _, bar, met in rows if met is not None}
    settings = {"backbone": "efficientnet_b0", "size_px": SIZE_PX, "images": options.images, "rounds": options.rounds}
    versions = {"onnxruntime": onnxruntime.__version__}
    if importlib.util.find_spec("openvino"):
        import openvino

        versions["openvino"] = openvino.__version__
    content = {"settings": settings, "versions": versions, "milliseconds_per_image": values, "figures": figures}
    write("prediction", {**content, "onnxruntimes_best_batch": best}, bars, rows=rows)


if __name__ == "__main__":
    main()
