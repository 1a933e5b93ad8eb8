"""Dermoscopic skin-lesion classification: train, evaluate, publish and serve. A research demonstration.

`LesionClassifier` is loaded on first use, so that importing a single step costs only what that step needs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modeling.classifier import LesionClassifier
    from modeling.prediction import Prediction

__version__ = "0.2.0"
__all__ = ["LesionClassifier", "Prediction", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("LesionClassifier", "Prediction"):
        from modeling import classifier

        return getattr(classifier, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
