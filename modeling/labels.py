"""The eight diagnoses of ISIC 2019: code, full name and behaviour; notices and licences.

Source: ISIC 2019 challenge, https://challenge.isic-archive.com/landing/2019/; order as in its ground-truth CSV.
"""

from dataclasses import dataclass
from typing import Literal

from modeling.formatting import TEXTS

Behaviour = Literal["malignant", "pre-malignant", "benign", "unknown"]


@dataclass(frozen=True)
class Diagnosis:
    """One diagnosis; `behaviour` describes the group, not a single patient's lesion."""

    code: str
    name: str
    behaviour: Behaviour

    @property
    def malignant(self) -> bool:
        """True for diagnoses that must not be missed: malignant or pre-malignant (actinic keratosis)."""
        return self.behaviour in ("malignant", "pre-malignant")


DIAGNOSES: tuple[Diagnosis, ...] = (
    Diagnosis("MEL", "melanoma", "malignant"),
    Diagnosis("NV", "melanocytic nevus", "benign"),
    Diagnosis("BCC", "basal cell carcinoma", "malignant"),
    # ISIC 2019 calls the class "actinic keratosis"; it can turn into squamous cell carcinoma (doi:10.1111/bjd.15107).
    Diagnosis("AK", "actinic keratosis", "pre-malignant"),
    Diagnosis("BKL", "benign keratosis", "benign"),
    Diagnosis("DF", "dermatofibroma", "benign"),
    Diagnosis("VASC", "vascular lesion", "benign"),
    Diagnosis("SCC", "squamous cell carcinoma", "malignant"),
)
CODES: tuple[str, ...] = tuple(diagnosis.code for diagnosis in DIAGNOSES)
# The four classes of the reference system, in its order (an ImageFolder sorts by name).
REFERENCE_CODES: tuple[str, ...] = ("BCC", "BKL", "MEL", "NV")

_BY_CODE = {diagnosis.code: diagnosis for diagnosis in DIAGNOSES}

NOTICE, SYNTHETIC_NOTICE = TEXTS["notice"], TEXTS["synthetic_notice"]

WEIGHTS_LICENSE = "cc-by-nc-4.0"  # licence of ISIC 2019; weights trained on it inherit it
SYNTHETIC_LICENSE = "apache-2.0"  # for weights trained on nothing but this package's drawings
ATTRIBUTION = (
    "ISIC 2019 challenge data, CC BY-NC 4.0: "
    "BCN_20000 (c) Department of Dermatology, Hospital Clinic de Barcelona (arXiv:1908.02288); "
    "HAM10000 (c) ViDIR Group, Department of Dermatology, Medical University of Vienna (doi:10.1038/sdata.2018.161); "
    "MSK (c) Anonymous (arXiv:1710.05006, arXiv:1902.03368)."
)


def diagnosis_of(code: str) -> Diagnosis:
    """Return the diagnosis of an ISIC code; an unknown label is returned as its own name, with behaviour "unknown"."""
    return _BY_CODE.get(code, Diagnosis(code, code, "unknown"))
