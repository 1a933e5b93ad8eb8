"""modeling/data/cache.py: the cache holds what decoding gives, and augmentation repeats itself."""

import multiprocessing
import os
import resource
import signal
import time

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from modeling.data.augmentation import Augmentation
from modeling.data.cache import CacheError, resized_images
from modeling.data.dataset import LesionDataset
from modeling.images import ImageError, decode_image


@pytest.fixture
def photographs(tmp_path):
    """Twelve JPEGs of 400x300, each of its own colours."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(12):
        coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        paths.append(str(tmp_path / f"{number:02d}.jpg"))
        coarse.resize((400, 300), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return as_dataset(paths)


def as_dataset(paths):
    ids = [os.path.basename(path) for path in paths]
    return datasets.Dataset.from_dict({"image": paths, "image_id": ids}).cast_column("image", datasets.Image())


def load(data, cache_dir, **changes):
    options = {"fingerprint": "f", "size_px": 32, "exact": True, "cache_gb": 1.0, "show_progress": False}
    return resized_images(data, cache_dir=cache_dir, **{**options, **changes})


def test_cached_pixels_are_those_of_a_full_decode(photographs, tmp_path):
    cached, direct = load(photographs, tmp_path / "c"), load(photographs, tmp_path / "c", cache_gb=0)
    assert cached.pixels is not None
    assert direct.pixels is None
    for index, path in enumerate(
        row["path"] for row in photographs.cast_column("image", datasets.Image(decode=False))["image"]
    ):
        expected = np.asarray(decode_image(path).resize((32, 32), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(cached[index], expected)
        np.testing.assert_array_equal(direct[index], expected)


def test_reduced_decoding_stays_close_to_the_full_one(photographs, tmp_path):
    exact, reduced = load(photographs, tmp_path / "c"), load(photographs, tmp_path / "c", exact=False)
    difference = np.abs(np.stack(list(exact)).astype(int) - np.stack(list(reduced)).astype(int))
    assert 0 < difference.mean() < 2


@pytest.mark.parametrize("change", [{"fingerprint": "g"}, {"size_px": 33}, {"exact": False}])
def test_other_data_or_sizes_get_a_cache_of_their_own(photographs, tmp_path, change):
    load(photographs, tmp_path / "c")
    load(photographs, tmp_path / "c", **change)
    assert len(list((tmp_path / "c").glob("*.pixels"))) == 2


def test_the_same_cache_is_not_built_twice(photographs, tmp_path):
    load(photographs, tmp_path / "c")
    (file,) = (tmp_path / "c").glob("*.pixels")
    inode = file.stat().st_ino
    load(photographs, tmp_path / "c")
    assert file.stat().st_ino == inode


def test_the_oldest_cache_makes_room_for_a_new_one(photographs, tmp_path):
    size = 12 * 32 * 32 * 3
    for number in range(4):
        load(photographs, tmp_path / "c", fingerprint=str(number), cache_gb=2.5 * size / 1e9)
        time.sleep(0.02)
    assert len(list((tmp_path / "c").glob("*.pixels"))) == 2


IMAGE_BYTES = 32 * 32 * 3


@pytest.mark.parametrize("n_bytes", [5 * IMAGE_BYTES, 0, 14 * IMAGE_BYTES])
@pytest.mark.parametrize("suffix", [".pixels", ".partial"])
def test_a_cache_of_another_size_is_made_again(photographs, tmp_path, caplog, n_bytes, suffix):
    expected = np.stack(list(load(photographs, tmp_path / "c")))
    (path,) = (tmp_path / "c").glob("*.pixels")
    os.truncate(path.rename(path.with_suffix(suffix)), n_bytes)
    np.testing.assert_array_equal(np.stack(list(load(photographs, tmp_path / "c"))), expected)
    # A build that did not end is nothing to worry about.
    assert (f"{n_bytes} bytes, not 36864" in caplog.text) == (suffix == ".pixels")
    assert sorted(file.suffix for file in (tmp_path / "c").iterdir()) == [".lock", ".pixels"]


def test_a_cache_that_cannot_be_opened_says_what_to_do(photographs, tmp_path):
    load(photographs, tmp_path / "c")
    (path,) = (tmp_path / "c").glob("*.pixels")
    path.unlink()
    path.mkdir()
    with pytest.raises(CacheError, match=r"cannot be used: .*--image_cache_gb 0"):
        load(photographs, tmp_path / "c")
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"cannot be used: .*--image_cache_gb 0"):
        load(photographs, tmp_path / "file")


def test_a_cache_that_the_disk_has_no_room_for_leaves_nothing_behind(photographs, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # files cannot grow, as on a full disk
    try:
        with pytest.raises(CacheError, match="File too large"):
            load(photographs, tmp_path / "c")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.suffix for file in (tmp_path / "c").iterdir()] == [".lock"]


def test_a_cache_that_cannot_fit_says_what_to_change(photographs, tmp_path):
    with pytest.raises(CacheError, match="--image_cache_gb"):
        load(photographs, tmp_path / "c", cache_gb=1e-6)


def test_an_unreadable_image_is_named(tmp_path):
    path = tmp_path / "ISIC_0000007.jpg"
    path.write_bytes(b"not an image at all")
    with pytest.raises(ImageError, match="ISIC_0000007"):
        load(as_dataset([str(path)]), tmp_path / "c")


def build_and_die(data, cache_dir):
    """Decode some images, then be killed in the middle of the build."""
    from modeling.data import cache as loading

    read, done = loading._read, []

    def read_some(*args, **kwargs):
        if len(done) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(0)
        return read(*args, **kwargs)

    loading._read = read_some
    load(data, cache_dir)


def test_a_killed_build_leaves_no_cache_and_the_next_start_makes_it(photographs, tmp_path):
    process = multiprocessing.get_context("fork").Process(target=build_and_die, args=(photographs, tmp_path / "c"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not list((tmp_path / "c").glob("*.pixels"))
    (partial,) = (tmp_path / "c").glob("*.partial")
    assert partial.stat().st_blocks * 512 >= partial.stat().st_size  # its room on the disk was reserved at the start
    finished = load(photographs, tmp_path / "c")
    assert not list((tmp_path / "c").glob("*.partial"))
    np.testing.assert_array_equal(np.stack(list(finished)), np.stack(list(load(photographs, tmp_path / "d"))))


def build_in_process(data, cache_dir, queue):
    queue.put(np.stack(list(load(data, cache_dir))).sum())


def test_processes_that_ask_at_once_share_one_build(photographs, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=build_in_process, args=(photographs, tmp_path / "c", queue)) for _ in range(4)]
    for process in processes:
        process.start()
    sums = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(sums) == 1
    assert len(list((tmp_path / "c").glob("*.pixels"))) == 1


@pytest.fixture
def augmented(photographs, tmp_path):
    augmentation = Augmentation(24, fill=(128, 128, 128))
    return LesionDataset(load(photographs, tmp_path / "c"), [0] * 12, augmentation=augmentation, seed=1)


def test_augmentation_depends_on_seed_epoch_and_image_alone(augmented):
    first = augmented[3]["pixels"]
    state = torch.get_rng_state()
    assert torch.equal(augmented[3]["pixels"], first)
    assert torch.equal(torch.get_rng_state(), state)
    augmented.set_epoch(1)
    assert not torch.equal(augmented[3]["pixels"], first)
    augmented.set_epoch(0)
    augmented.seed = 2
    assert not torch.equal(augmented[3]["pixels"], first)


def test_each_seed_epoch_and_place_has_its_own_augmentation(photographs, tmp_path):
    picture = load(photographs, tmp_path / "c")[0]
    seen = set()
    for seed in range(3):
        dataset = LesionDataset([picture] * 3, [0] * 3, augmentation=Augmentation(24, fill=(0, 0, 0)), seed=seed)
        for epoch in range(3):
            dataset.set_epoch(epoch)
            seen |= {dataset[index]["pixels"].numpy().tobytes() for index in range(3)}
    assert len(seen) == 27


def test_a_row_carries_the_label_and_index_of_its_image(photographs, tmp_path):
    images = load(photographs, tmp_path / "c")
    (batch,) = DataLoader(LesionDataset(images, range(100, 112)), batch_size=12)
    assert batch["label"].tolist() == list(range(100, 112))
    assert batch["index"].tolist() == list(range(12))
    assert (batch["pixels"].numpy() == np.stack(list(images))).all()


def test_augmentation_is_the_same_in_worker_processes(augmented):
    batches = [
        torch.cat([batch["pixels"] for batch in DataLoader(augmented, 4, num_workers=workers)]) for workers in (0, 2)
    ]
    assert torch.equal(*batches)


def test_loader_processes_that_live_on_see_each_epoch(photographs, tmp_path):
    images = load(photographs, tmp_path / "c", size_px=40)
    dataset = LesionDataset(images, [0] * len(images), augmentation=Augmentation(32, fill=(0, 0, 0)))
    loader = DataLoader(dataset, batch_size=len(images), num_workers=1, persistent_workers=True)
    seen = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        (batch,) = loader
        seen.append(batch["pixels"])
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_what_a_loader_hands_out_can_be_changed_without_changing_the_cache(photographs, tmp_path):
    plain = LesionDataset(load(photographs, tmp_path / "c"), [0] * 12)
    before = plain[0]["pixels"].clone()
    plain[0]["pixels"].zero_()
    assert torch.equal(plain[0]["pixels"], before)
