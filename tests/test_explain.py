"""modeling/explain.py: the head-only Grad-CAM agrees with pytorch-grad-cam on the whole model."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from modeling.classifier import LesionClassifier
from modeling.operating_points import OperatingPoint
from support.untrained import untrained_folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """At 160 px the tiny network has maps of 5x5; its classifier's weights are large enough that some evidence is positive."""
    folder = untrained_folder(tmp_path_factory.mktemp("explain"), size_px=160, spread=0.5)
    return LesionClassifier.from_pretrained(folder, device="cpu")


def test_maps_agree_with_pytorch_grad_cam_on_the_whole_model(classifier, lesion_image):
    explanation = classifier.explain(lesion_image)
    pixel_values = torch.from_numpy(classifier.preprocess(lesion_image))[None].requires_grad_(True)
    for index in range(len(classifier.codes)):
        with GradCAM(model=classifier.engine.network, target_layers=[classifier.engine.network.bn2]) as cam:
            stock = cam(input_tensor=pixel_values, targets=[ClassifierOutputTarget(index)])[0]  # (S, S), own maximum 1
        ours = np.maximum(explanation.evidence[index], 0)
        assert ours.max() > 0
        ours = np.asarray(Image.fromarray(ours / ours.max()).resize((160, 160), Image.Resampling.BILINEAR))
        # The library enlarges with OpenCV's bilinear filter, whose borders differ by a little.
        assert np.corrcoef(ours.ravel(), stock.ravel())[0, 1] > 0.98


def test_mean_of_a_map_is_the_logit_without_its_bias(classifier, lesion_image):
    pixel_values = classifier.preprocess(lesion_image)[None]
    outputs = classifier.engine.forward(pixel_values, evidence=True)
    bias = classifier.engine.network.get_classifier().bias.numpy()
    np.testing.assert_allclose(outputs.evidence.mean(axis=(2, 3)), outputs.logits - bias, atol=1e-5)


def test_maps_have_the_size_of_the_image_and_share_one_scale(classifier, lesion_image):
    explanation = classifier.explain(lesion_image.resize((201, 77)))
    assert explanation.maps.shape == (4, 77, 201)
    assert explanation.maps.min() >= 0
    assert 0.8 <= explanation.maps.max() <= 1
    strongest = int(explanation.evidence.max(axis=(1, 2)).argmax())
    assert explanation.maps.max(axis=(1, 2)).argmax() == strongest


def test_an_unknown_diagnosis_is_refused_by_name(classifier, lesion_image):
    with pytest.raises(ValueError, match="no diagnosis 'XYZ'; it has BCC, BKL, MEL, NV"):
        classifier.explain(lesion_image).heat_map("XYZ")


def test_a_map_follows_what_is_in_the_picture(classifier, lesion_image):
    other = Image.new("RGB", lesion_image.size, (120, 160, 200))
    assert not np.allclose(classifier.explain(lesion_image).evidence, classifier.explain(other).evidence, atol=1e-3)


def test_eight_threads_get_the_maps_of_one(classifier, lesion_image):
    images = [lesion_image.rotate(15 * turn) for turn in range(24)]
    alone = [classifier.explain(image).evidence for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda image: classifier.explain(image).evidence, images))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_explaining_leaves_no_gradient_and_no_hook_on_the_model(classifier, lesion_image):
    classifier.explain(lesion_image)
    assert all(parameter.grad is None for parameter in classifier.engine.network.parameters())
    assert not any(module._forward_hooks for module in classifier.engine.network.modules())


def test_the_answer_beside_the_maps_is_that_of_the_same_image(classifier, lesion_image):
    again = classifier.engine.forward(classifier.preprocess(lesion_image)[None])
    assert classifier.predictions(again, again.probs)[0] == classifier.explain(lesion_image).prediction


def test_the_map_of_what_was_flagged_is_shown_first(classifier):
    points = [
        OperatingPoint("MEL@95", ("MEL",), 0.95, 0.1, 0.95, 0.62, 40, 100),
        OperatingPoint("malignant@95", ("BCC", "MEL"), 0.95, 0.1, 0.95, 0.62, 60, 80),
        OperatingPoint("malignant@90", ("BCC", "MEL"), 0.90, 0.01, 0.95, 0.62, 60, 80),
    ]
    flagging = copy.copy(classifier)
    flagging.operating_points = points

    def shown(*probs):
        return flagging.shown_code(flagging.prediction(np.array(probs), None))  # BCC, BKL, MEL, NV

    assert shown(0.05, 0.1, 0.12, 0.73) == "MEL"
    assert shown(0.2, 0.1, 0.12, 0.58) == "BCC"
    assert shown(0.02, 0.1, 0.02, 0.86) == "NV"
