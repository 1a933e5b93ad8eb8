import numpy as np
import pytest
import torch
from accelerate import Accelerator
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


class Numbered(torch.utils.data.Dataset):
    """Five images."""

    image_ids = list("abcde")  # noqa: RUF012

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> dict:
        return {"pixels": pixels_of(index), "label": index % 4}


def pixels_of(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def run(network: torch.nn.Module) -> Outputs:
    accelerator = Accelerator(cpu=True)
    return run_model(network, accelerator.prepare(DataLoader(Numbered(), batch_size=2)), accelerator)


def test_outputs_come_in_the_order_of_the_dataset(network) -> None:
    network.train()
    outputs = run(network)
    assert outputs.image_ids == list("abcde")
    assert outputs.labels.tolist() == [0, 1, 2, 3, 0]
    assert not network.training


def test_the_engine_gives_the_outputs_of_the_network(classifier, network) -> None:
    """Images or functions that return one; ONNX Runtime against torch."""
    images = [Image.fromarray(pixels_of(index)) for index in range(5)]
    mixed = [images[0], *(lambda image=image: image for image in images[1:])]
    found = run_images(classifier, mixed, image_ids=list("abcde"), labels=[0, 1, 2, 3, -1])
    expected = run(network)
    assert classifier.engine.name == "onnx"
    assert found.image_ids == list("abcde")
    assert found.labels.tolist() == [0, 1, 2, 3, -1]
    assert found.logits == pytest.approx(expected.logits, abs=1e-4)
    assert found.features == pytest.approx(expected.features, abs=1e-3)


def test_an_unreadable_image_is_named(classifier) -> None:
    images = [Image.new("RGB", (8, 8)), b"no image"]
    with pytest.raises(ImageError, match=r"^photo_2: "):
        run_images(classifier, images, image_ids=["photo_1", "photo_2"], labels=[0, 0])


def test_broken_weights_are_an_error_and_not_a_score(network) -> None:
    with torch.no_grad():
        network.get_classifier().bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="5 of 5 images have logits that are not finite"):
        run(network)
