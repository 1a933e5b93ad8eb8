"""The table of hashes that `load_images` makes, of a dataset that a test made itself."""

import datasets
import pandas as pd

from modeling.data.decoding import decode_images


def hash_images(dataset: datasets.Dataset) -> pd.DataFrame:
    """Return image_id, lesion_id, hash and sha256 of each image."""
    decoded = decode_images(dataset)
    columns = {name: dataset[name][:] for name in ("image_id", "lesion_id")}
    return pd.DataFrame({**columns, "hash": decoded["hash"][:], "sha256": decoded["sha256"][:]})
