"""The process that our programs run in: freed memory is kept, and what the user set stays."""

import ctypes
import itertools
import os
import statistics
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

needs_mallopt = pytest.mark.skipif(
    os.name != "posix" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="mallopt is glibc's"
)

PAGE_FAULTS = """
import resource, sys
from modeling.runtime import prepare_process, prepare_server
{"process": prepare_process, "server": prepare_server, "nothing": lambda: None}[sys.argv[1]]()
import torch
torch.set_num_threads(1)
network = torch.nn.Sequential(
    torch.nn.Conv2d(3, 32, 3), torch.nn.SiLU(), torch.nn.Conv2d(32, 32, 3), torch.nn.SiLU(), torch.nn.Conv2d(32, 64, 3)
)
images = torch.ones(int(sys.argv[2]), 3, 224, 224)  # a feature map of 4 takes 25 MB or more; glibc would give it back each time
faults = []
for step in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    network(images).mean().backward()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[-2:]))
"""


HELD = """
import os, sys, threading
from modeling.runtime import prepare_process, prepare_server
{"process": prepare_process, "server": prepare_server}[sys.argv[1]]()

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

def answer(everyone):
    for size in (50_000_000, 30_000_000, 5_000_000):  # a visitor's file, what it unpacks to, feature maps
        blocks = [bytearray(size)]
        everyone.wait()  # so that no thread can use what another has freed
        blocks.clear()

before = resident_mb()
for _ in range(3):  # threads come and go
    everyone = threading.Barrier(6)
    threads = [threading.Thread(target=answer, args=(everyone,)) for _ in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print(round(resident_mb() - before))
"""


def page_faults(case: str, n_images: int) -> int:
    arguments = [sys.executable, "-c", PAGE_FAULTS, case, str(n_images)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return int(run.stdout)


@needs_mallopt
def test_freed_memory_is_used_again() -> None:
    assert page_faults("process", 4) < page_faults("nothing", 4) / 5


@needs_mallopt
def test_a_server_uses_the_memory_of_one_photo_again_and_gives_back_the_rest() -> None:
    held = {}
    for case in ("process", "server"):
        run = subprocess.run([sys.executable, "-c", HELD, case], capture_output=True, text=True, check=True)
        held[case] = int(run.stdout)
    assert held["process"] > 250
    assert held["server"] < 150  # its reserve of 128 MiB
    # For one image it depends on the addresses that a process gets, and glibc alone may have none: three of each count.
    server, nothing = ([page_faults(case, 1) for _ in range(3)] for case in ("server", "nothing"))
    assert statistics.median(server) < max(nothing) / 5


def test_waiting_threads_sleep_unless_the_user_says_otherwise() -> None:
    script = "import os, modeling.runtime as process; process.{}(); print(os.environ['OMP_WAIT_POLICY'])"
    cases = itertools.product(("prepare_process", "prepare_server"), ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")))
    for prepare, (given, expected) in cases:
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        if given:
            environment["OMP_WAIT_POLICY"] = given
        run = subprocess.run(
            [sys.executable, "-c", script.format(prepare)], env=environment, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == expected


def test_it_comes_before_torch() -> None:
    script = "import sys, modeling.runtime; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
