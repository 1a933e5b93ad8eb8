"""modeling/classifier.py: one answer per image, the same one however it is asked for."""

import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader

from modeling.classifier import LesionClassifier, map_ahead
from modeling.data.decoding import decode_images
from modeling.files import ModelFolderError
from modeling.images import ImageError, decode_image
from modeling.labels import NOTICE, SYNTHETIC_NOTICE
from modeling.model_folder import read_config
from modeling.network import normalise
from modeling.operating_points import OperatingPoint
from modeling.training.loaders import LesionDataset
from support.untrained import random_rule, untrained_folder


@pytest.fixture(scope="module")
def classifier(tiny_model_folder):
    return LesionClassifier.from_pretrained(tiny_model_folder, device="cpu")


def test_probabilities_are_the_softmax_of_timms_logits(classifier, tiny_model_folder, lesion_image):
    model = timm.create_model(f"local-dir:{tiny_model_folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model), is_training=False)
    with torch.inference_mode():
        expected = model(transform(lesion_image)[None]).softmax(dim=1)[0].numpy()
    prediction = classifier.predict(lesion_image)
    np.testing.assert_allclose(list(prediction.probabilities.values()), expected, atol=1e-6)
    assert prediction.diagnosis == classifier.codes[int(expected.argmax())]
    assert prediction.probability == max(prediction.probabilities.values())


def test_an_image_gives_the_same_answer_in_every_form(classifier, lesion_image, tmp_path):
    path = tmp_path / "lesion.png"
    lesion_image.save(path)
    forms = [path, str(path), path.read_bytes(), lesion_image, np.asarray(lesion_image)]
    answers = [classifier.predict(form).probabilities for form in forms]
    assert all(answer == answers[0] for answer in answers)


def test_a_list_is_answered_in_its_order_whatever_its_length(classifier, lesion_image):
    images = [lesion_image.rotate(5 * turn) for turn in range(37)]
    together = classifier.predict(images)
    assert len(together) == 37
    for image, prediction in zip(images, together, strict=True):
        alone = classifier.predict(image)
        np.testing.assert_allclose(
            list(prediction.probabilities.values()), list(alone.probabilities.values()), atol=1e-6
        )
    assert classifier.predict([]) == []


def test_prediction_and_evaluation_preprocess_the_same_pixels(classifier, tiny_model_folder, lesion_image, tmp_path):
    import datasets

    paths = []
    for number, quality in enumerate((60, 95)):
        paths.append(str(tmp_path / f"{number}.jpg"))
        lesion_image.resize((900, 700)).rotate(10 * number).save(paths[-1], quality=quality)
    data = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    pixels = decode_images(data, size_px=classifier.size_px).add_column("image_id", paths)
    (batch,) = DataLoader(LesionDataset(pixels, [0, 0]), batch_size=2)
    scored = normalise(batch["pixels"], read_config(tiny_model_folder)["pretrained_cfg"])
    assert scored.is_contiguous(memory_format=torch.channels_last)
    for index, path in enumerate(paths):
        torch.testing.assert_close(scored[index], torch.from_numpy(classifier.preprocess(path)), rtol=0, atol=0)


def test_an_unreadable_image_says_what_to_do(classifier, tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("no picture")
    with pytest.raises(ImageError, match=r"notes\.jpg"):
        classifier.predict(path)


def test_tta_is_the_mean_over_the_eight_symmetries(classifier, lesion_image):
    square = lesion_image.resize((64, 64))
    views = [square, square.rotate(90), square.rotate(180), square.rotate(270)]
    views += [view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for view in views]
    expected = np.mean([list(classifier.predict(view).probabilities.values()) for view in views], axis=0)
    found = list(classifier.predict(square, tta=True).probabilities.values())
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_operating_points_and_abstention_of_the_folder_are_applied(tmp_path, lesion_image):
    rule = random_rule(2)
    for threshold in (1e-6, 1.0):
        point = OperatingPoint("MEL@95", ("MEL",), 0.95, threshold, 0.95, 0.5, 10, 10)
        lesion = {"operating_points": [point], "abstention": rule}
        folder = untrained_folder(tmp_path / str(threshold), codes=["MEL", "NV"], **lesion)
        classifier = LesionClassifier.from_pretrained(folder, device="cpu")
        prediction = classifier.predict(lesion_image)
        assert prediction.operating_points == {"MEL@95": threshold < 1}
        outputs = classifier.engine.forward(classifier.preprocess(lesion_image)[None])
        assert prediction.abstained == bool(rule.abstains(outputs.logits, outputs.features)[0])
        assert (prediction.reason is not None) == prediction.abstained


@pytest.mark.parametrize("output", ["logits", "features"])
def test_a_network_that_gives_numbers_that_are_not_finite_is_not_believed(classifier, lesion_image, output):
    outputs = classifier.engine.forward(classifier.preprocess(lesion_image)[None])
    getattr(outputs, output)[0, 0] = np.nan
    with pytest.raises(ModelFolderError, match="not finite"):
        classifier.predictions(outputs, outputs.probs)


def test_a_prediction_is_json_with_notice_and_provenance(classifier, lesion_image):
    content = json.loads(json.dumps(classifier.predict(lesion_image).to_dict()))
    assert content["notice"] == f"{NOTICE} {SYNTHETIC_NOTICE}"  # of this model
    assert content["provenance"]["weights_sha256"] == classifier.lesion["weights_sha256"]
    assert set(content["probabilities"]) == set(classifier.codes)


def test_priors_reweight_the_probabilities_and_leave_the_operating_points(tmp_path, lesion_image):
    mix = {"BCC": 0.05, "BKL": 0.1, "MEL": 0.15, "NV": 0.7}
    plain = LesionClassifier.from_pretrained(untrained_folder(tmp_path / "unknown"), device="cpu")
    probs = plain.predict(lesion_image).probabilities
    threshold = probs["MEL"] * 0.99  # reached at equal priors, and not at the mix
    point = OperatingPoint("MEL@95", ("MEL",), 0.95, threshold, 0.95, 0.5, 10, 10)
    folder = untrained_folder(tmp_path / "known", class_priors=mix, operating_points=[point])
    equal, dataset = (LesionClassifier.from_pretrained(folder, device="cpu", priors=p) for p in ("equal", "dataset"))
    assert equal.class_priors == mix
    found = dataset.predict(lesion_image)
    total = sum(probs[code] * mix[code] for code in mix)
    assert found.probabilities == pytest.approx({code: probs[code] * mix[code] / total for code in mix})
    assert (found.diagnosis, found.priors) == ("NV", pytest.approx(mix))
    assert found.probabilities["MEL"] < threshold
    assert found.operating_points == equal.predict(lesion_image).operating_points == {"MEL@95": True}
    assert found.flagged == ("melanoma",)
    assert equal.with_priors("dataset").predict(lesion_image) == found
    assert equal.predict(lesion_image).priors == dict.fromkeys(mix, 0.25)  # with_priors leaves the first as it was
    with pytest.raises(ValueError, match="does not record the mix"):
        plain.with_priors("dataset")


def test_eight_threads_get_the_answers_of_one(classifier, lesion_image):
    images = [lesion_image.rotate(9 * turn) for turn in range(32)]
    alone = [classifier.predict(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(classifier.predict, images)) == alone


def test_serving_needs_none_of_the_training_libraries():
    code = (
        "import sys, modeling.predictor, modeling.explain;"
        "print([name for name in ('datasets', 'accelerate', 'evaluate', 'gradio', 'pandas', 'sklearn', 'scipy',"
        " 'matplotlib', 'pytorch_grad_cam', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_jpegs_are_decoded_whole_so_that_other_loaders_see_the_same_pixels(classifier, lesion_image):
    buffer = io.BytesIO()
    lesion_image.resize((1600, 1200)).save(buffer, "JPEG")
    plain = Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
    assert np.array_equal(np.asarray(decode_image(buffer.getvalue())), np.asarray(plain))
    assert classifier.predict(buffer.getvalue()).probabilities == classifier.predict(plain).probabilities


def test_only_a_few_images_are_read_ahead_and_an_error_does_not_wait_for_the_rest():
    taken = []

    def numbers():
        for number in range(1000):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(2) as pool:
        results = map_ahead(pool, lambda number: 1 // (5 - number), numbers(), ahead=8)
        assert [next(results) for _ in range(5)] == [1 // (5 - number) for number in range(5)]
        assert len(taken) <= 5 + 8 + 1
        with pytest.raises(ZeroDivisionError):
            next(results)
    assert len(taken) <= 6 + 8 + 1
