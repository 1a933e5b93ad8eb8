"""The released model: its card is today's, its published scores come out of its images, and three loaders agree on it."""

import json
import re
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score

from modeling.classifier import LesionClassifier
from modeling.model_folder import released_model
from modeling.publish.card import CARD_NAME, EVALUATION_NAME, render_card

RELEASED = released_model()
METRICS = json.loads((RELEASED / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def test_images(real_data) -> pd.DataFrame:
    """The test images of the model's split, with their paths."""
    splits = pd.read_csv(RELEASED / "splits.csv")
    test = splits[splits["split"] == "test"]
    folders = {True: "isic2019", False: "isic2019_msk"}
    return test.assign(
        path=[
            real_data / folders[source == "HAM"] / "ISIC_2019_Training_Input" / f"{name}.jpg"
            for source, name in zip(test["source"], test["image_id"], strict=True)
        ]
    )


def test_its_card_is_that_of_todays_templates_and_short():
    written = {name: (RELEASED / name).read_text(encoding="utf-8") for name in (CARD_NAME, EVALUATION_NAME)}
    assert render_card(RELEASED) == written
    words = [word for word in written[CARD_NAME].split("---", 2)[2].split() if re.search(r"\w", word)]
    assert len(words) <= 900


@pytest.mark.slow
def test_its_published_scores_come_out_of_its_test_images(test_images):
    classifier = LesionClassifier.from_pretrained()
    predictions = classifier.predict(list(test_images["path"]))
    probs = np.array([list(one.probabilities.values()) for one in predictions])
    at_mix = probs * [classifier.class_priors[code] for code in classifier.codes]
    labels, predicted = test_images["label"].to_numpy(), np.array([one.diagnosis for one in predictions])
    flagged = np.array([one.operating_points["MEL@95"] for one in predictions])
    published = METRICS["test"]
    [point] = [point["test"] for point in METRICS["operating_points"] if point["name"] == "MEL@95"]
    melanoma = labels == "MEL"
    found = {
        "balanced accuracy": balanced_accuracy_score(labels, predicted),
        "melanoma recall": recall_score(labels, predicted, labels=["MEL"], average=None)[0],
        "accuracy": (np.array(classifier.codes)[at_mix.argmax(axis=1)] == labels).mean(),
        "melanoma AUROC": roc_auc_score(melanoma, probs[:, classifier.codes.index("MEL")]),
        "sensitivity": flagged[melanoma].mean(),
        "specificity": 1 - flagged[~melanoma].mean(),
        "abstained": np.mean([one.abstained for one in predictions]),
    }
    expected = {
        "balanced accuracy": published["balanced_accuracy"]["value"],
        "melanoma recall": published["per_class"]["MEL"]["recall"]["value"],
        "accuracy": published["accuracy"]["value"],
        "melanoma AUROC": published["per_class"]["MEL"]["auroc"]["value"],
        "sensitivity": point["sensitivity"]["value"],
        "specificity": point["specificity"]["value"],
        "abstained": METRICS["abstention"]["test"]["abstained"]["value"],
    }
    assert len(labels) == published["n_images"]
    assert found == pytest.approx(expected, abs=1e-3)  # another CPU may round a borderline image differently


@pytest.mark.slow
def test_three_loaders_give_the_same_probabilities_for_200_photographs(test_images):
    import timm
    import torch
    from timm.data import create_transform, resolve_model_data_config
    from transformers import pipeline

    paths = list(test_images["path"].sample(200, random_state=0))
    ours = LesionClassifier.from_pretrained().predict(paths)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is to be warned of
        theirs = pipeline("image-classification", model=str(RELEASED), top_k=None)(list(map(str, paths)), batch_size=20)
    model = timm.create_model(f"local-dir:{RELEASED}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    with torch.inference_mode():
        logits = torch.cat([model(some) for some in pixels.split(20)])
    for one, labels, probs in zip(ours, theirs, logits.softmax(dim=1).tolist(), strict=True):
        by_pipeline = {entry["label"]: entry["score"] for entry in labels}
        by_timm = dict(zip(one.probabilities, probs, strict=True))
        assert by_pipeline == pytest.approx(one.probabilities, abs=1e-5)
        assert by_timm == pytest.approx(one.probabilities, abs=1e-5)
        assert one.diagnosis == max(by_pipeline, key=by_pipeline.get) == max(by_timm, key=by_timm.get)
