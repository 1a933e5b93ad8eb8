"""Heat maps: which regions of an image raised the score of each diagnosis (Grad-CAM, which the engines compute).

A heat map shows where a score came from. It does not segment the lesion and does not prove an answer correct.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from modeling.prediction import Prediction


@dataclass(frozen=True)
class Explanation:
    """Evidence for every diagnosis, on the network's grid.

    Attributes:
        codes: Diagnosis codes, length C.
        evidence: Signed Grad-CAM before clipping, float32 (C, h, w), in units of the logit: for a network that ends in
            average pooling and a linear layer, a map's mean is the logit without its bias.
        size: (height, width) of the upright image in pixels.
        prediction: The answer for the same image, from the same forward pass.
        shown_code: The diagnosis whose map to show first: the most probable one of what was flagged, or of all.
    """

    codes: tuple[str, ...]
    evidence: np.ndarray
    size: tuple[int, int]
    prediction: Prediction
    shown_code: str

    @property
    def maps(self) -> np.ndarray:
        """Heat maps of all diagnoses in the image's own geometry, float32 (C, H, W), in [0, 1] on one shared scale."""
        return np.stack([self.heat_map(code) for code in self.codes])

    def heat_map(self, code: str, *, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return the map of one of `codes`, float32 (H, W) in [0, 1]; 1 is the strongest positive evidence for any of them.

        Args:
            code: The diagnosis.
            size: (height, width) of the result; that of the image by default.
        """
        if code not in self.codes:
            raise ValueError(f"this model has no diagnosis {code!r}; it has {', '.join(self.codes)}.")
        positive = np.maximum(self.evidence[self.codes.index(code)], 0) / max(self.scale, 1e-12)
        height, width = size or self.size
        # Resizing also undoes the squashing of the image.
        heat = Image.fromarray(positive.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(heat, dtype=np.float32).clip(0, 1)

    @property
    def scale(self) -> float:
        """The strongest positive evidence for any diagnosis: what all maps are divided by."""
        return max(float(self.evidence.max()), 0.0)
