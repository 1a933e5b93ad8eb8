"""Demo data: synthetic images that look like dermoscopy, in the columns of the real data, made without a network.

Diagnoses differ by the cues that dermatologists name (colours, border, network, vessels, cysts); skin tone, light, pose,
hair, rulers, ink and dark corners vary alike over all diagnoses. So a model can learn here, and every artefact that the code
must handle occurs; but the model knows nothing about photographs of skin.

Source of the cues: Kittler et al. (2016), Standardization of terminology in dermoscopy, doi:10.1016/j.jaad.2015.12.038.
"""

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm.auto import tqdm

from modeling.data.artefacts import draw_hair, draw_ink, draw_ruler, draw_vignette, to_array, to_image
from modeling.data.columns import FEATURES
from modeling.labels import CODES, REFERENCE_CODES

SOURCE = "synthetic"
WIDTH_PX, HEIGHT_PX = 160, 120
# The four default diagnoses are trained on; the others are there as lesions that such a model has never seen.
LESIONS_PER_DEFAULT_DIAGNOSIS = 84
LESIONS_PER_OTHER_DIAGNOSIS = 22
PHOTOS_PER_LESION = (0.40, 0.35, 0.15, 0.10)  # probability of 1, 2, 3 and 4 photographs
FRACTION_WITHOUT_LESION_ID = 0.06
FRACTION_BLANK = 0.05  # of each metadata column
CANVAS_PX = 144  # side of the square on which a lesion is painted once, before it is photographed

Array = np.ndarray
Lesion = tuple[Image.Image, Array]  # a square RGBA image, and the colour of the skin, (3,) float32
# Mean age in years, and fraction of each site: plausible, and only weakly related to the diagnosis.
_AGES = {"MEL": 60, "NV": 44, "BCC": 67, "AK": 68, "BKL": 63, "DF": 50, "VASC": 52, "SCC": 70}
_SITES = ("anterior torso", "lower extremity", "head/neck", "upper extremity", "posterior torso", "palms/soles")
_SITE_FRACTIONS = np.array([0.30, 0.22, 0.18, 0.14, 0.13, 0.03])
_SUN_SITE_FRACTIONS = np.array([0.20, 0.12, 0.40, 0.16, 0.11, 0.01])
_SUN_DIAGNOSES = ("BCC", "AK", "SCC", "BKL")


def load_demo(*, seed: int = 0) -> datasets.Dataset:
    """Draw the demo dataset: all eight diagnoses, one to four photographs of a lesion, about 800 images.

    The same seed gives the same pixels. Some lesions have no `lesion_id` and are in it twice with slightly different
    files, as in real archives, so that the grouping of near-duplicates has work to do.
    """
    return datasets.Dataset.from_list([row for row, _ in _drawings(seed)], features=FEATURES)


def demo_masks(*, seed: int = 0) -> dict[str, Array]:
    """Draw the demo again and return where each image shows its lesion: image_id → boolean (H, W), True inside."""
    return {row["image_id"]: inside for row, inside in _drawings(seed)}


def _drawings(seed: int) -> Iterator[tuple[dict[str, Any], Array]]:
    """Yield each row of the demo, with its lesion mask."""
    rng = np.random.default_rng([seed, 2019])
    plan = [
        code
        for code in CODES
        for _ in range(LESIONS_PER_DEFAULT_DIAGNOSIS if code in REFERENCE_CODES else LESIONS_PER_OTHER_DIAGNOSIS)
    ]
    n_images = 0
    for number, position in enumerate(tqdm(rng.permutation(len(plan)), desc="drawing demo lesions", unit="lesion")):
        code = plan[position]
        # Each lesion has a generator of its own, so that its photographs do not depend on the lesions before it.
        own = np.random.default_rng([seed, 2019, number])
        known = own.random() >= FRACTION_WITHOUT_LESION_ID
        n_photos = 1 + int(own.choice(len(PHOTOS_PER_LESION), p=PHOTOS_PER_LESION))
        metadata = _metadata(own, code)
        for jpeg, inside in _photographs(own, code, n_photos) if known else _copies(own, code, n_photos):
            row = {
                "image": {"bytes": jpeg, "path": None},
                "image_id": f"DEMO_{n_images:07d}",
                "label": code,
                "lesion_id": f"DEMO_L{number:06d}" if known else None,
                "source": SOURCE,
                **metadata,
            }
            yield row, inside
            n_images += 1


def draw_lesion(rng: np.random.Generator, code: str, *, width_px: int, height_px: int) -> Image.Image:
    """Draw one dermoscopy-like image of a new lesion, with the artefacts that `load_demo` has.

    Args:
        rng: Decides everything but the diagnosis.
        code: One of the eight ISIC 2019 codes.
        width_px: Width of the image.
        height_px: Height of the image.
    """
    return _photograph(rng, _new_lesion(rng, code), width_px, height_px)[0]


def _photographs(rng: np.random.Generator, code: str, n: int) -> list[tuple[bytes, Array]]:
    """Photograph one lesion n times: other pose, light and artefacts each time; return JPEGs and lesion masks."""
    lesion = _new_lesion(rng, code)
    taken = [(*_photograph(rng, lesion, WIDTH_PX, HEIGHT_PX), int(rng.integers(85, 96))) for _ in range(n)]
    return [(_jpeg(image, quality), inside) for image, inside, quality in taken]


def _copies(rng: np.random.Generator, code: str, n: int) -> list[tuple[bytes, Array]]:
    """Return one photograph n times, each saved with another brightness and quality, as archives hold it."""
    image, inside = _photograph(rng, _new_lesion(rng, code), WIDTH_PX, HEIGHT_PX)
    array = to_array(image)
    return [(_jpeg(to_image(array * rng.uniform(0.94, 1.06)), int(rng.integers(80, 96))), inside) for _ in range(n)]


def _photograph(rng: np.random.Generator, lesion: Lesion, width: int, height: int) -> tuple[Image.Image, Array]:
    """Return a photograph of the lesion and where it shows it, boolean (H, W)."""
    on_canvas, skin = lesion
    unit = min(width, height)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    # Skin: fine grain and faint furrows over slow changes of tone.
    photo = skin * (
        1
        + 0.012 * _noise(rng, (height, width), unit / 40)[..., None]
        + 0.018 * _noise(rng, (height, width), unit / 2)[..., None]
    )

    # Pose: the canvas (side 2 in its own units) seen turned, mirrored, scaled and shifted.
    angle, scale = rng.uniform(0, 2 * np.pi), rng.uniform(0.42, 0.60) * unit
    mirror = rng.choice([-1.0, 1.0])
    # Off-centre, so that a heat map of the lesion differs from one of the centre.
    centre = np.array([width, height]) * rng.uniform([0.24, 0.28], [0.76, 0.72])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [[1.0], [mirror]]
    to_canvas = turn / scale * (CANVAS_PX / 2)  # photograph px → canvas px
    offset = CANVAS_PX / 2 - to_canvas @ centre
    matrix = (*to_canvas[0], offset[0], *to_canvas[1], offset[1])
    seen = on_canvas.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    layer = np.asarray(seen, dtype=np.float32)
    alpha = layer[..., 3:] / 255
    photo += (layer[..., :3] - photo) * alpha

    # Light: exposure, colour balance and a slope across the field.
    slope = rng.uniform(0, 2 * np.pi)
    ramp = ((x / width - 0.5) * math.cos(slope) + (y / height - 0.5) * math.sin(slope)) * rng.uniform(0, 0.22)
    balance = rng.uniform(0.86, 1.12) * rng.normal(1, 0.015, size=3).clip(0.96, 1.04)
    photo *= (1 + ramp)[..., None] * balance.astype(np.float32)
    if rng.random() < 0.3:  # bubbles and reflections of the contact fluid
        for _ in range(int(rng.integers(1, 6))):
            spot = np.hypot(x - rng.uniform(0, width), y - rng.uniform(0, height)) / (unit * rng.uniform(0.01, 0.035))
            photo += 90 * rng.uniform(0.4, 1) * np.exp(-(spot**2))[..., None]
    image = to_image(photo)
    for artefact, share in _ARTEFACTS:
        if rng.random() < share:
            image = artefact(image, rng)
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9) * unit / 120))
    grain = rng.uniform(0.5, 3.0) * rng.standard_normal((height, width, 1), dtype=np.float32)
    return to_image(to_array(image) + grain), alpha[..., 0] > 0.5 * alpha.max()


_ARTEFACTS: tuple[tuple[Callable[[Image.Image, np.random.Generator], Image.Image], float], ...] = (
    (draw_ink, 0.12),
    (draw_hair, 0.35),
    (draw_ruler, 0.20),
    (draw_vignette, 0.25),
)


def _new_lesion(rng: np.random.Generator, code: str) -> Lesion:
    if code not in _PAINTERS:
        raise ValueError(f"no drawing for diagnosis {code!r}; choose one of {', '.join(_PAINTERS)}.")
    tone = rng.beta(1.3, 2.6)  # 0 pale, 1 brown: most archives hold mostly pale skin
    skin = (1 - tone) * np.array([232.0, 196, 176]) + tone * np.array([158.0, 112, 84]) + rng.normal(0, 3, size=3)
    canvas = _Canvas(rng)
    _PAINTERS[code](canvas)
    # Pigment is in the skin: on darker skin every colour is darker.
    shaded = canvas.rgb * (1 - 0.25 * tone)
    rgba = np.dstack([shaded, 255 * canvas.alpha]).clip(0, 255).round().astype(np.uint8)
    return Image.fromarray(rgba, "RGBA"), skin.astype(np.float32)


@dataclass
class _Canvas:
    """The square on which a lesion is painted; x and y run from -1 to 1, a lesion's radius is about 0.5."""

    rng: np.random.Generator
    rgb: Array = field(init=False)
    alpha: Array = field(init=False)
    inside: Array = field(init=False)  # (S, S), distance from the centre: 1 on the border

    def __post_init__(self) -> None:
        axis = (np.arange(CANVAS_PX, dtype=np.float32) + 0.5) / CANVAS_PX * 2 - 1
        self.x, self.y = np.meshgrid(axis, axis)
        self.rgb = np.zeros((CANVAS_PX, CANVAS_PX, 3), dtype=np.float32)

    def outline(self, *, waves: dict[int, float], softness: float, opacity: float = 1.0, stretch: float = 0.2) -> None:
        """Set the border: a circle plus waves (number around the border → amplitude), sharp or fading."""
        rng = self.rng
        long = 1 + rng.uniform(0, stretch)
        radius, theta = np.hypot(self.x / long, self.y * long), np.arctan2(self.y, self.x)
        border = np.full_like(radius, rng.uniform(0.46, 0.62))
        for k, amplitude in waves.items():
            border *= 1 + amplitude * rng.uniform(0.6, 1.3) * np.cos(k * theta + rng.uniform(0, 2 * np.pi))
        border *= min(1.0, 0.85 / (long * border.max()))  # the whole lesion is on the canvas
        self.inside = radius / border
        fade = ((1 - np.maximum(abs(self.x), abs(self.y))) / 0.15).clip(0, 1)  # nothing ends at the canvas' edge
        self.alpha = fade * opacity / (1 + np.exp(((self.inside - 1) / softness * 4).clip(-30, 30)))

    def fill(self, centre: Array, rim: Array, *, mottling: float = 6.0) -> None:
        """Paint a slope of colour from centre to rim, slightly mottled."""
        weight = self.inside.clip(0, 1)[..., None] ** 1.5
        self.rgb = (centre * (1 - weight) + rim * weight + mottling * self.noise(0.25)[..., None]).astype(np.float32)

    def paint(self, colour: tuple[float, float, float], weight: Array) -> None:
        """Mix a colour in, weight (S, S) from 0 to 1."""
        weight = weight.clip(0, 1)[..., None]
        self.rgb = self.rgb * (1 - weight) + np.asarray(colour, dtype=np.float32) * weight

    def noise(self, scale: float) -> Array:
        """Return smooth noise with features of about `scale` (of the half side): mean 0, deviation 1, (S, S)."""
        return _noise(self.rng, (CANVAS_PX, CANVAS_PX), scale * CANVAS_PX / 2)

    def place(self, reach: tuple[float, float] = (0.0, 0.85)) -> tuple[float, float]:
        """Return a point inside the border, with its distance from the centre, as a fraction of the radius, in `reach`."""
        within = np.flatnonzero((self.inside >= reach[0]) & (self.inside < reach[1]))
        flat = int(self.rng.choice(within)) if len(within) else self.inside.size // 2 + CANVAS_PX // 2
        return float(self.x.flat[flat]), float(self.y.flat[flat])

    def spots(
        self, n: int, colour: tuple[float, float, float], size: tuple[float, float], *,
        reach: tuple[float, float] = (0.0, 0.85), strength: float = 0.9, edge: float = 6.0,
    ) -> None:  # fmt: skip
        """Paint n round spots with radii in `size`."""
        weight = np.zeros_like(self.inside)
        for _ in range(n):
            x, y = self.place(reach)
            radius = self.rng.uniform(*size)
            squeeze = self.rng.uniform(0.75, 1.3)
            # Only the window that the spot reaches is computed; outside its weight is below 0.01.
            reached = radius * (1 + 5 / edge) * 1.34
            columns, lines = (
                slice(
                    max(0, int((middle - reached + 1) / 2 * CANVAS_PX)), int((middle + reached + 1) / 2 * CANVAS_PX) + 1
                )
                for middle in (x, y)
            )
            across, down = self.x[lines, columns] - x, self.y[lines, columns] - y
            distance = np.hypot(across * squeeze, down / squeeze) / radius
            window = weight[lines, columns]
            np.maximum(window, 1 / (1 + np.exp((distance - 1) * edge)), out=window)
        self.paint(colour, strength * weight)

    def network(self, colour: tuple[float, float, float], *, pitch: float, strength: float, where: Array) -> None:
        """Paint a pigment network: dark lines around pale holes, on a slightly warped honeycomb."""
        turn = self.rng.uniform(0, np.pi)
        x, y = self.x + 0.035 * self.noise(0.35), self.y + 0.035 * self.noise(0.35)
        lattice = sum(
            np.cos(2 * np.pi / pitch * (x * np.cos(turn + k * np.pi / 3) + y * np.sin(turn + k * np.pi / 3)))
            for k in range(3)
        )  # -1.5 on the lines, 3 in the holes
        self.paint(colour, strength * where * ((0.6 - lattice) / 2.1).clip(0, 1))

    def strokes(
        self, lines: list[Array], colour: tuple[float, float, float], width: float, *, strength: float = 0.8
    ) -> None:
        """Paint polylines given in canvas units; `width` in canvas units too."""
        double = 2 * CANVAS_PX
        mask = Image.new("L", (double, double))
        draw = ImageDraw.Draw(mask)
        for line in lines:
            points = [tuple(point) for point in ((line + 1) / 2 * double).tolist()]
            draw.line(points, fill=255, width=max(1, round(width / 2 * double)), joint="curve")
        small = mask.resize((CANVAS_PX, CANVAS_PX), Image.Resampling.BOX)
        self.paint(colour, strength * np.asarray(small, dtype=np.float32) / 255)

    def vessel(self, start: tuple[float, float], angle: float, length: float, branches: int) -> list[Array]:
        """Return the polylines of a vessel that bends and branches."""
        steps = max(4, int(length / 0.05))
        angles = angle + np.cumsum(self.rng.normal(0, 0.28, size=steps))
        line = np.array(start) + np.cumsum(0.05 * np.stack([np.cos(angles), np.sin(angles)], axis=1), axis=0)
        line = np.concatenate([[start], line])
        lines = [line]
        for _ in range(branches):
            index = int(self.rng.integers(1, len(line) - 1))
            side = self.rng.choice([-1.0, 1.0]) * self.rng.uniform(0.5, 1.0)
            lines += self.vessel(
                (float(line[index, 0]), float(line[index, 1])), angles[index - 1] + side, length * 0.55, branches // 2
            )
        return lines


def _paint_nv(canvas: _Canvas) -> None:
    """Nevus: round, even, brown, with a regular network that thins out towards the border."""
    rng = canvas.rng
    canvas.outline(waves={2: 0.04, 3: 0.025}, softness=rng.uniform(0.18, 0.4), opacity=rng.uniform(0.8, 0.95))
    depth = rng.uniform(0.8, 1.15)
    canvas.fill(np.array([122.0, 80, 54]) * depth, np.array([168.0, 122, 88]) * depth, mottling=4)
    where = (1.15 - canvas.inside).clip(0, 1)
    canvas.network((84 * depth, 52 * depth, 36 * depth), pitch=rng.uniform(0.10, 0.15), strength=0.75, where=where)
    if rng.random() < 0.4:
        canvas.spots(int(rng.integers(5, 14)), (80, 50, 36), (0.02, 0.035), strength=0.7)


def _paint_mel(canvas: _Canvas) -> None:
    """Melanoma: ragged and lopsided, several colours, blue-white veil, irregular dots and streaks."""
    rng = canvas.rng
    waves = {1: 0.16, 2: 0.10, 3: 0.10, 4: 0.05, 5: 0.06, 7: 0.04, 8: 0.03, 11: 0.025}
    canvas.outline(waves=waves, softness=rng.uniform(0.10, 0.24), opacity=0.96, stretch=0.3)
    canvas.fill(np.array([88.0, 58, 46]), np.array([120.0, 80, 58]), mottling=8)
    lean = np.cos(np.arctan2(canvas.y, canvas.x) - rng.uniform(0, 2 * np.pi))  # one side differs from the other
    colours = ((42, 30, 30), 0.2), ((152, 104, 78), 0.7), ((104, 108, 124), 0.6)  # black, tan, blue-white veil
    for colour, threshold in colours:
        patch = 0.7 * canvas.noise(0.45) + 0.35 * canvas.noise(0.12) + 0.7 * lean * rng.choice([-1.0, 1.0])
        canvas.paint(colour, 0.85 / (1 + np.exp(-(patch - threshold) * 3)))
    canvas.network((46, 32, 28), pitch=0.13, strength=0.5, where=1 / (1 + np.exp(-canvas.noise(0.5) * 4)))
    if rng.random() < 0.4:
        canvas.paint((196, 150, 142), 0.7 / (1 + np.exp(-(canvas.noise(0.35) - 1.4) * 6)))
    canvas.spots(int(rng.integers(6, 18)), (30, 22, 24), (0.015, 0.05), reach=(0.5, 1.0))
    streaks = []
    for _ in range(int(rng.integers(4, 12))):
        start = np.array(canvas.place((0.8, 0.95)))
        streaks.append(np.stack([start, start * rng.uniform(1.08, 1.25)]))
    canvas.strokes(streaks, (52, 38, 34), 0.03, strength=0.7)


def _paint_bcc(canvas: _Canvas) -> None:
    """Basal cell carcinoma: pink and translucent, branching vessels, blue-grey nests, a small sore."""
    rng = canvas.rng
    canvas.outline(waves={2: 0.08, 3: 0.06, 5: 0.03}, softness=rng.uniform(0.25, 0.5), opacity=rng.uniform(0.75, 0.92))
    pink = np.array([222.0, 150, 146]) + rng.normal(0, 7, size=3)
    canvas.fill(pink + np.array([10, 18, 16]), pink, mottling=5)
    canvas.spots(int(rng.integers(3, 9)), (112, 112, 130), (0.04, 0.11), reach=(0.2, 0.95), strength=0.7, edge=4)
    lines: list[Array] = []
    for _ in range(int(rng.integers(2, 5))):
        start = canvas.place((0.55, 1.0))
        lines += canvas.vessel(start, np.arctan2(-start[1], -start[0]) + rng.normal(0, 0.5), rng.uniform(0.4, 0.8), 3)
    canvas.strokes(lines, (180, 52, 58), 0.018, strength=0.75)
    if rng.random() < 0.45:
        canvas.spots(1, (128, 44, 36), (0.07, 0.14), reach=(0.0, 0.5), strength=0.85)
    if rng.random() < 0.5:
        canvas.paint((244, 226, 220), 0.6 * _ridges(canvas.noise(0.3), 0.04) * (canvas.inside < 0.9))


def _paint_bkl(canvas: _Canvas) -> None:
    """Benign keratosis: waxy yellow-brown with a sharp scalloped border, white cysts, dark pits and fissures."""
    rng = canvas.rng
    waves = {2: 0.06, 3: 0.05, 5: 0.03, 9: 0.015, 13: 0.015, 17: 0.012}
    canvas.outline(waves=waves, softness=rng.uniform(0.06, 0.14), opacity=rng.uniform(0.82, 0.95))
    wax = np.array([190.0, 148, 100]) * rng.uniform(0.82, 1.1) + rng.normal(0, 5, size=3)
    canvas.fill(wax, wax * 0.9, mottling=9)
    canvas.paint((116, 84, 56), 0.65 * _ridges(canvas.noise(rng.uniform(0.2, 0.3)), 0.07))
    canvas.spots(int(rng.integers(8, 22)), (244, 234, 200), (0.018, 0.036))
    canvas.spots(int(rng.integers(3, 10)), (66, 44, 30), (0.025, 0.05))


def _paint_ak(canvas: _Canvas) -> None:
    """Actinic keratosis: red pseudo-network around pale follicles, with white scale, fading into the skin."""
    rng = canvas.rng
    canvas.outline(waves={2: 0.12, 3: 0.08, 4: 0.05}, softness=rng.uniform(0.5, 0.8), opacity=rng.uniform(0.6, 0.8))
    canvas.fill(np.array([206.0, 118, 104]), np.array([214.0, 136, 118]), mottling=7)
    canvas.spots(int(rng.integers(20, 40)), (240, 208, 186), (0.025, 0.045), reach=(0.0, 1.1), strength=0.8)
    canvas.paint((248, 240, 226), 0.8 / (1 + np.exp(-(canvas.noise(0.12) - 1.3) * 5)))


def _paint_df(canvas: _Canvas) -> None:
    """Dermatofibroma: a white scar-like centre within a delicate brown ring of network."""
    rng = canvas.rng
    canvas.outline(waves={2: 0.04, 3: 0.03}, softness=rng.uniform(0.4, 0.7), opacity=rng.uniform(0.75, 0.9))
    canvas.fill(np.array([226.0, 192, 178]), np.array([172.0, 120, 92]), mottling=4)
    ring = np.exp(-(((canvas.inside - 0.8) / 0.3) ** 2))
    canvas.network((124, 80, 58), pitch=rng.uniform(0.08, 0.11), strength=0.7, where=ring)
    canvas.paint((244, 222, 212), 0.8 * np.exp(-((canvas.inside / rng.uniform(0.35, 0.5)) ** 2)))


def _paint_vasc(canvas: _Canvas) -> None:
    """Vascular lesion: well-bordered red and violet lakes, parted by pale walls."""
    rng = canvas.rng
    canvas.outline(waves={2: 0.05, 5: 0.03}, softness=rng.uniform(0.06, 0.15), opacity=0.95)
    canvas.fill(np.array([168.0, 62, 72]), np.array([190.0, 88, 92]), mottling=6)
    canvas.spots(int(rng.integers(14, 30)), (140, 30, 48), (0.06, 0.12), reach=(0.0, 0.95), edge=6)
    canvas.spots(int(rng.integers(3, 9)), (84, 28, 62), (0.06, 0.12), reach=(0.0, 0.8), edge=6)


def _paint_scc(canvas: _Canvas) -> None:
    """Squamous cell carcinoma: yellow-white horn in the centre, looped vessels and blood spots around it."""
    rng = canvas.rng
    canvas.outline(waves={2: 0.08, 3: 0.06, 5: 0.04}, softness=rng.uniform(0.15, 0.3), opacity=0.92)
    canvas.fill(np.array([224.0, 178, 150]), np.array([206.0, 122, 112]), mottling=8)
    horn = canvas.noise(0.2) + 1.6 * (0.6 - canvas.inside)
    canvas.paint((232, 208, 150), 0.95 / (1 + np.exp(-(horn - 0.2) * 4)))
    canvas.spots(int(rng.integers(4, 10)), (116, 28, 26), (0.02, 0.05), reach=(0.1, 0.8))
    loops = []
    for _ in range(int(rng.integers(14, 26))):
        start = np.array(canvas.place((0.65, 1.0)))
        turn = np.arctan2(start[1], start[0]) + np.linspace(0, 1.7 * np.pi, 9)
        loops.append(start + 0.035 * np.stack([np.cos(turn), np.sin(turn)], axis=1))
    canvas.strokes(loops, (166, 34, 42), 0.02)


_PAINTERS: dict[str, Callable[[_Canvas], None]] = {
    "MEL": _paint_mel,
    "NV": _paint_nv,
    "BCC": _paint_bcc,
    "AK": _paint_ak,
    "BKL": _paint_bkl,
    "DF": _paint_df,
    "VASC": _paint_vasc,
    "SCC": _paint_scc,
}


def _metadata(rng: np.random.Generator, code: str) -> dict[str, object]:
    age = 5 * round(float(rng.normal(_AGES[code], 14)) / 5)
    shares = _SUN_SITE_FRACTIONS if code in _SUN_DIAGNOSES else _SITE_FRACTIONS
    values: dict[str, object] = {
        "age_approx": float(min(max(age, 5), 85)),
        "sex": "male" if rng.random() < 0.53 else "female",
        "anatom_site_general": _SITES[int(rng.choice(len(_SITES), p=shares))],
    }
    return {column: None if rng.random() < FRACTION_BLANK else value for column, value in values.items()}


def _noise(rng: np.random.Generator, shape: tuple[int, int], scale_px: float) -> Array:
    """Return smooth noise of this feature size: a coarse grid of normal numbers, enlarged; mean 0, deviation 1."""
    height, width = shape
    coarse = (max(2, round(width / scale_px) + 2), max(2, round(height / scale_px) + 2))
    grid = Image.fromarray(rng.normal(size=coarse[::-1]).astype(np.float32))
    smooth: Array = np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
    smooth = (smooth - smooth.mean()) / (smooth.std() + 1e-6)
    return smooth


def _ridges(noise: Array, width: float) -> Array:
    """Return lines along the zero crossings of a noise field, weight 0 to 1."""
    return np.exp(-((noise / (width * 4)) ** 2))


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
