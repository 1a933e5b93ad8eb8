import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from modeling.classifier import LesionClassifier
from modeling.images import ImageError
from modeling.inference import Outputs, run_images, run_model


@pytest.fixture(scope="module")
def classifier(tiny_model_folder) -> LesionClassifier:
    return LesionClassifier.from_pretrained(tiny_model_folder, device="cpu")


@pytest.fixture
def network(tiny_model_folder) -> torch.nn.Module:
    return LesionClassifier.from_pretrained(tiny_model_folder, device="cpu", engine="torch").engine.network


class Shuffled(torch.utils.data.Dataset):
    """Images whose order is given."""

    def __init__(self, order: list[int], size: int) -> None:
        self.order, self.size, self.image_ids = order, size, list("abcde")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> dict:
        index = self.order[place]
        return {"pixels": pixels_of(index), "label": index % 4, "index": index}


def pixels_of(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def loader_of(order: list[int], size: int) -> DataLoader:
    return DataLoader(Shuffled(order, size), batch_size=2, sampler=range(len(order)))


def test_outputs_come_in_the_order_of_the_dataset(network) -> None:
    network.train()
    straight, shuffled = (run_model(network, loader_of(order, 5)) for order in ([0, 1, 2, 3, 4], [3, 0, 4, 2, 1]))
    assert shuffled.image_ids == list("abcde")
    assert shuffled.labels.tolist() == [0, 1, 2, 3, 0]
    assert shuffled.logits == pytest.approx(straight.logits, abs=1e-5)
    assert shuffled.features == pytest.approx(straight.features, abs=1e-4)
    assert network.training


def test_the_engine_gives_the_outputs_of_the_network(classifier, network) -> None:
    """Images or functions that return one; ONNX Runtime against torch."""
    images = [Image.fromarray(pixels_of(index)) for index in range(5)]
    mixed = [images[0], *(lambda image=image: image for image in images[1:])]
    found = run_images(classifier, mixed, image_ids=list("abcde"), labels=[0, 1, 2, 3, -1])
    expected = run_model(network, loader_of([0, 1, 2, 3, 4], 5))
    assert classifier.engine.name == "onnx"
    assert found.image_ids == list("abcde")
    assert found.labels.tolist() == [0, 1, 2, 3, -1]
    assert found.logits == pytest.approx(expected.logits, abs=1e-4)
    assert found.features == pytest.approx(expected.features, abs=1e-3)


def test_an_unreadable_image_is_named(classifier) -> None:
    images = [Image.new("RGB", (8, 8)), b"no image"]
    with pytest.raises(ImageError, match=r"^photo_2: "):
        run_images(classifier, images, image_ids=["photo_1", "photo_2"], labels=[0, 0])


@pytest.mark.parametrize("order", [[0, 1, 1, 2], [0, 1, 2]])
def test_an_image_that_comes_twice_or_never_is_an_error(network, order) -> None:
    with pytest.raises(ValueError, match="expected each of 4 images once"):
        run_model(network, loader_of(order, 4))


def test_broken_weights_are_an_error_and_not_a_score(network) -> None:
    with torch.no_grad():
        network.get_classifier().bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="2 of 2 images have logits that are not finite"):
        run_model(network, loader_of([0, 1], 2))


def test_outputs_are_taken_by_mask_or_by_position() -> None:
    outputs = Outputs(list("abc"), np.array([0, 1, 2]), np.eye(3), np.eye(3))
    for chosen in (np.array([True, False, True]), np.array([0, 2])):
        taken = outputs.take(chosen)
        assert taken.image_ids == ["a", "c"]
        assert taken.labels.tolist() == [0, 2]
        assert taken.logits.tolist() == [[1, 0, 0], [0, 0, 1]]
