"""modeling/training/accelerator.py: devices, precision, threads, and the launcher."""

from types import SimpleNamespace

import pytest
import torch

from modeling.training.accelerator import end_with_launcher, make_accelerator
from modeling.training.options import parse_options


class Cluster(SimpleNamespace):
    """In place of an accelerator: 16 processes in all, 4 of them on this machine with 16 cores."""

    device = torch.device("cpu")
    num_processes = 16


@pytest.fixture(autouse=True)
def cluster(monkeypatch):
    monkeypatch.setattr("modeling.training.accelerator.Accelerator", Cluster)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


@pytest.mark.parametrize(("emulates", "precision"), [(True, None), (False, "bf16")])
def test_bf16_is_chosen_where_the_gpu_computes_it_and_not_where_it_is_emulated(monkeypatch, emulates, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or not emulates
    )
    assert make_accelerator(parse_options([])).mixed_precision == precision


def test_the_processes_of_one_machine_share_its_cores(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)), raising=False)
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    make_accelerator(parse_options([]))
    assert threads == [4]


def test_without_a_launcher_the_end_of_the_parent_ends_nothing(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("a death signal was set"))
    end_with_launcher()
