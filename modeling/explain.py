"""Heat maps: where in an image the score of each diagnosis came from (Grad-CAM, which the engines compute).

A heat map shows where a score came from, not why: it is no outline of the lesion and no proof of a correct answer.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from modeling.prediction import Prediction

BY_TORCH = "Its heat maps were computed by torch: this network does not end in average pooling and one linear layer."


@dataclass(frozen=True)
class Explanation:
    """Evidence for every diagnosis, and where in the picture it lies.

    Attributes:
        codes: Diagnosis codes, length C.
        evidence: Signed Grad-CAM before clipping, float32 (C, h, w), in units of the logit: for a network that ends in
            average pooling and a linear layer, a map's mean is the logit without its bias.
        size: (height, width) of the upright image in pixels.
        prediction: The answer for the same image, from the same forward pass.
        note: What else there is to say of how it came about, in a sentence; None otherwise.
    """

    codes: tuple[str, ...]
    evidence: np.ndarray
    size: tuple[int, int]
    prediction: Prediction
    note: str | None = None

    @property
    def maps(self) -> np.ndarray:
        """Heat maps of all diagnoses in the image's own geometry, float32 (C, H, W), in [0, 1] on one shared scale."""
        return np.stack([self.heat_map(code) for code in self.codes])

    def heat_map(self, code: str, *, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return one diagnosis' map, float32 (H, W) in [0, 1]; 1 is the strongest positive evidence for any diagnosis.

        Args:
            code: One of `codes`.
            size: (height, width) of the result; that of the image by default.
        """
        positive = np.maximum(self.evidence[self._index(code)], 0) / max(self.scale, 1e-12)
        return _resize(positive, size or self.size).clip(0, 1)

    def contrast(self, code: str, other: str, *, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return where the score speaks for `code` (up to 1) rather than for `other` (down to -1), float32 (H, W)."""
        difference = self.evidence[self._index(code)] - self.evidence[self._index(other)]
        return _resize(difference / max(float(np.abs(difference).max()), 1e-12), size or self.size).clip(-1, 1)

    def has_evidence(self, code: str) -> bool:
        """True if some part of the image speaks for this diagnosis."""
        return bool((self.evidence[self._index(code)] > 0).any())

    @property
    def scale(self) -> float:
        """The strongest positive evidence for any diagnosis: what all maps are divided by."""
        return max(float(self.evidence.max()), 0.0)

    def _index(self, code: str) -> int:
        if code not in self.codes:
            raise ValueError(f"this model has no diagnosis {code!r}; it has {', '.join(self.codes)}.")
        return self.codes.index(code)


def _resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (h, w) to (H, W) bicubically. The picture was squashed, so this is also the way back to its geometry."""
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC), dtype=np.float32)
