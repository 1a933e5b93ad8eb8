"""Demo data: synthetic images that look like dermoscopy, in the columns of the real data, made without a network.

Diagnoses differ by the cues that dermatologists name (colours, border, network, vessels, cysts); skin tone, light, pose,
hair, rulers, ink and dark corners vary alike over all diagnoses. So a model can learn here, and every artefact that the code
must handle occurs; but the model knows nothing about photographs of skin.

Source of the cues: Kittler et al. (2016), Standardization of terminology in dermoscopy, doi:10.1016/j.jaad.2015.12.038.
"""

import io
from collections.abc import Callable, Iterator
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
Colour = tuple[float, float, float]
# Mean age in years: plausible, and only weakly related to the diagnosis.
_AGES = {"MEL": 60, "NV": 44, "BCC": 67, "AK": 68, "BKL": 63, "DF": 50, "VASC": 52, "SCC": 70}
_SITES = ("anterior torso", "lower extremity", "head/neck", "upper extremity", "posterior torso", "palms/soles")


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
        metadata, lesion = _metadata(own, code), _new_lesion(own, code)
        photos = [_photograph(own, lesion, WIDTH_PX, HEIGHT_PX) for _ in range(n_photos if known else 1)]
        # A lesion without an id is one photograph in several files, as archives hold it.
        for image, inside in photos if known else photos * n_photos:
            row = {
                "image": {"bytes": _jpeg(own, image), "path": None},
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


def _photograph(rng: np.random.Generator, lesion: Lesion, width: int, height: int) -> tuple[Image.Image, Array]:
    """Return a photograph of the lesion and where it shows it, boolean (H, W)."""
    on_canvas, skin = lesion
    unit = min(width, height)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    # Skin: fine grain and faint furrows over slow changes of tone.
    grain, furrows = (_noise(rng, (height, width), unit / parts)[..., None] for parts in (40, 2))
    photo = skin * (1 + 0.012 * grain + 0.018 * furrows)

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
    slope = rng.uniform(-0.15, 0.15, size=2)
    ramp = (x / width - 0.5) * slope[0] + (y / height - 0.5) * slope[1]
    balance = rng.uniform(0.86, 1.12) * rng.normal(1, 0.015, size=3).clip(0.96, 1.04)
    image = to_image(photo * (1 + ramp)[..., None] * balance)
    for artefact, share in _ARTEFACTS:
        if rng.random() < share:
            image = artefact(image, rng)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6) * unit / 120))
    noise = rng.uniform(0.5, 3.0) * rng.standard_normal((height, width, 1))
    return to_image(to_array(image) + noise), alpha[..., 0] > 0.5 * alpha.max()


_ARTEFACTS: tuple[tuple[Callable[[Image.Image, np.random.Generator], Image.Image], float], ...] = (
    (draw_ink, 0.12),
    (draw_hair, 0.35),
    (draw_ruler, 0.20),
    (draw_vignette, 0.25),
)


def _new_lesion(rng: np.random.Generator, code: str) -> Lesion:
    tone = rng.beta(1.3, 2.6)  # 0 pale, 1 brown: most archives hold mostly pale skin
    skin = (1 - tone) * np.array([232.0, 196, 176]) + tone * np.array([158.0, 112, 84]) + rng.normal(0, 3, size=3)
    canvas = _Canvas(rng)
    _PAINTERS[code](canvas)
    # Pigment is in the skin: on darker skin every colour is darker.
    shaded = canvas.rgb * (1 - 0.25 * tone) * rng.uniform(0.9, 1.1)
    rgba = np.dstack([shaded, 255 * canvas.alpha]).clip(0, 255).round().astype(np.uint8)
    return Image.fromarray(rgba, "RGBA"), skin.astype(np.float32)


class _Canvas:
    """The square on which a lesion is painted; x and y run from -1 to 1, a lesion's radius is about 0.5."""

    rgb: Array
    alpha: Array
    inside: Array  # (S, S), distance from the centre: 1 on the border

    def __init__(self, rng: np.random.Generator) -> None:
        axis = (np.arange(CANVAS_PX, dtype=np.float32) + 0.5) / CANVAS_PX * 2 - 1
        self.x, self.y = np.meshgrid(axis, axis)
        self.rng = rng

    def outline(self, waves: dict[int, float], *, softness: float) -> None:
        """Set the border: a circle plus waves (number around the border → amplitude), sharp or fading."""
        radius, theta = np.hypot(self.x, self.y), np.arctan2(self.y, self.x)
        border = np.full_like(radius, self.rng.uniform(0.46, 0.62))
        for k, amplitude in waves.items():
            border *= 1 + amplitude * self.rng.uniform(0.6, 1.3) * np.cos(k * theta + self.rng.uniform(0, 2 * np.pi))
        border *= min(1.0, 0.85 / border.max())  # the whole lesion is on the canvas
        self.inside = radius / border
        fade = ((1 - np.maximum(abs(self.x), abs(self.y))) / 0.15).clip(0, 1)  # nothing ends at the canvas' edge
        self.alpha = 0.92 * fade * ((1 - self.inside) / softness + 0.5).clip(0, 1)

    def fill(self, centre: Colour, rim: Colour) -> None:
        """Paint a slope of colour from centre to rim, slightly mottled."""
        weight = self.inside.clip(0, 1)[..., None] ** 1.5
        self.rgb = np.array(centre) * (1 - weight) + np.array(rim) * weight + 6 * self.noise(0.25)[..., None]

    def paint(self, colour: Colour, weight: Array) -> None:
        """Mix a colour in, weight (S, S) from 0 to 1."""
        weight = weight.clip(0, 1)[..., None]
        self.rgb = self.rgb * (1 - weight) + np.array(colour) * weight

    def noise(self, scale: float) -> Array:
        """Return smooth noise with features of about `scale` (of the half side): mean 0, deviation 1, (S, S)."""
        return _noise(self.rng, (CANVAS_PX, CANVAS_PX), scale * CANVAS_PX / 2)

    def place(self, reach: tuple[float, float]) -> tuple[float, float]:
        """Return a point inside the border, with its distance from the centre, as a fraction of the radius, in `reach`."""
        flat = self.rng.choice(np.flatnonzero((self.inside >= reach[0]) & (self.inside < reach[1])))
        return float(self.x.flat[flat]), float(self.y.flat[flat])

    def patches(self, colour: Colour, scale: float, *, threshold: float, where: Array | float = 0.0) -> None:
        """Paint irregular patches, more of them where `where` is high."""
        self.paint(colour, 0.85 / (1 + np.exp(-4 * (self.noise(scale) + where - threshold))))

    def spots(
        self, n: tuple[int, int], colour: Colour, size: tuple[float, float], reach: tuple[float, float] = (0, 0.85)
    ) -> None:
        """Paint as many round spots, with radii in `size`."""
        weight = np.zeros_like(self.inside)
        for _ in range(int(self.rng.integers(*n))):
            x, y = self.place(reach)
            distance = np.hypot(self.x - x, self.y - y) / self.rng.uniform(*size)
            weight = np.maximum(weight, 3 - 2.5 * distance)
        self.paint(colour, 0.9 * weight.clip(0, 1))

    def network(self, colour: Colour, *, pitch: float, where: Array) -> None:
        """Paint a pigment network: dark lines around pale holes, on a slightly warped honeycomb."""
        x, y = self.x + 0.035 * self.noise(0.35), self.y + 0.035 * self.noise(0.35)
        angles = self.rng.uniform(0, np.pi) + np.arange(3) * np.pi / 3
        lattice = sum(np.cos(2 * np.pi / pitch * (x * np.cos(angle) + y * np.sin(angle))) for angle in angles)
        self.paint(colour, 0.75 * where.clip(0, 1) * ((0.6 - lattice) / 2.1).clip(0, 1))  # lattice: -1.5 to 3

    def vessels(self, n: tuple[int, int], colour: Colour) -> None:
        """Paint as many bending vessels."""
        mask = Image.new("L", (2 * CANVAS_PX, 2 * CANVAS_PX))
        for _ in range(int(self.rng.integers(*n))):
            angles = self.rng.uniform(0, 2 * np.pi) + np.cumsum(self.rng.normal(0, 0.35, size=12))
            line = self.place((0.3, 0.9)) + np.cumsum(0.05 * np.stack([np.cos(angles), np.sin(angles)], axis=1), axis=0)
            ImageDraw.Draw(mask).line([*((line + 1) * CANVAS_PX).ravel()], fill=255, width=3, joint="curve")
        self.paint(colour, 0.75 * np.asarray(mask.reduce(2)) / 255)


def _paint_nv(canvas: _Canvas) -> None:
    """Nevus: round, even, brown, with a regular network that thins out towards the border."""
    canvas.outline({2: 0.04, 3: 0.025}, softness=0.3)
    canvas.fill((122, 80, 54), (168, 122, 88))
    canvas.network((84, 52, 36), pitch=canvas.rng.uniform(0.10, 0.15), where=1.15 - canvas.inside)


def _paint_mel(canvas: _Canvas) -> None:
    """Melanoma: ragged and lopsided, several colours, blue-white veil, irregular dots."""
    canvas.outline({1: 0.16, 2: 0.10, 3: 0.10, 5: 0.06, 7: 0.04, 11: 0.025}, softness=0.16)
    canvas.fill((88, 58, 46), (120, 80, 58))
    for colour, threshold in ((42, 30, 30), 0.2), ((152, 104, 78), 0.8), ((104, 108, 124), 0.7):  # black, tan, veil
        lean = canvas.x * np.cos(angle := canvas.rng.uniform(0, 2 * np.pi)) + canvas.y * np.sin(angle)
        canvas.patches(colour, 0.4, threshold=threshold, where=1.5 * lean)
    canvas.spots((6, 18), (30, 22, 24), (0.015, 0.05), (0.5, 1.0))


def _paint_bcc(canvas: _Canvas) -> None:
    """Basal cell carcinoma: pink and translucent, blue-grey nests, vessels."""
    canvas.outline({2: 0.08, 3: 0.06, 5: 0.03}, softness=0.4)
    canvas.fill((232, 168, 162), (222, 150, 146))
    canvas.spots((3, 9), (112, 112, 130), (0.04, 0.11), (0.2, 0.95))
    canvas.vessels((4, 10), (180, 52, 58))


def _paint_bkl(canvas: _Canvas) -> None:
    """Benign keratosis: waxy yellow-brown with a sharp scalloped border, white cysts and dark pits."""
    canvas.outline({2: 0.06, 3: 0.05, 5: 0.03, 9: 0.015, 13: 0.015, 17: 0.012}, softness=0.1)
    canvas.fill((190, 148, 100), (171, 133, 90))
    canvas.spots((8, 22), (244, 234, 200), (0.02, 0.036))
    canvas.spots((3, 10), (66, 44, 30), (0.025, 0.05))


def _paint_ak(canvas: _Canvas) -> None:
    """Actinic keratosis: red around pale follicles, with white scale, fading into the skin."""
    canvas.outline({2: 0.12, 3: 0.08, 4: 0.05}, softness=0.7)
    canvas.fill((206, 118, 104), (214, 136, 118))
    canvas.spots((20, 40), (240, 208, 186), (0.025, 0.045), (0.0, 1.1))
    canvas.patches((248, 240, 226), 0.12, threshold=1.3)


def _paint_df(canvas: _Canvas) -> None:
    """Dermatofibroma: a white scar-like centre within a delicate brown ring of network."""
    canvas.outline({2: 0.04, 3: 0.03}, softness=0.5)
    canvas.fill((240, 216, 206), (160, 110, 84))
    canvas.network((124, 80, 58), pitch=0.1, where=np.exp(-(((canvas.inside - 0.8) / 0.3) ** 2)))


def _paint_vasc(canvas: _Canvas) -> None:
    """Vascular lesion: well-bordered, with red and violet lakes."""
    canvas.outline({2: 0.05, 5: 0.03}, softness=0.1)
    canvas.fill((168, 62, 72), (190, 88, 92))
    canvas.spots((14, 30), (140, 30, 48), (0.06, 0.12), (0.0, 0.95))
    canvas.spots((3, 9), (84, 28, 62), (0.06, 0.12))


def _paint_scc(canvas: _Canvas) -> None:
    """Squamous cell carcinoma: yellow-white horn in the centre, vessels and blood spots around it."""
    canvas.outline({2: 0.08, 3: 0.06, 5: 0.04}, softness=0.2)
    canvas.fill((224, 178, 150), (206, 122, 112))
    canvas.vessels((10, 20), (166, 34, 42))
    canvas.patches((232, 208, 150), 0.2, threshold=0.2, where=1.6 * (0.6 - canvas.inside))
    canvas.spots((4, 10), (116, 28, 26), (0.02, 0.05))


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
    values: dict[str, object] = {
        "age_approx": float(np.clip(5 * round(rng.normal(_AGES[code], 14) / 5), 5, 85)),
        "sex": rng.choice(["male", "female"]),
        "anatom_site_general": rng.choice(_SITES),
    }
    return {column: None if rng.random() < FRACTION_BLANK else value for column, value in values.items()}


def _noise(rng: np.random.Generator, shape: tuple[int, int], scale_px: float) -> Array:
    """Return smooth noise of this feature size: a coarse grid of normal numbers, enlarged; mean 0, deviation 1."""
    height, width = shape
    coarse = rng.normal(size=(max(2, round(height / scale_px) + 2), max(2, round(width / scale_px) + 2)))
    smooth = np.asarray(Image.fromarray(coarse.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
    return (smooth - smooth.mean()) / (smooth.std() + 1e-6)


def _jpeg(rng: np.random.Generator, image: Image.Image) -> bytes:
    """Save an image with a brightness and quality of its own."""
    buffer = io.BytesIO()
    brightened = to_image(to_array(image) * rng.uniform(0.94, 1.06))
    brightened.save(buffer, "JPEG", quality=int(rng.integers(80, 96)), subsampling=0)
    return buffer.getvalue()
