"""The process that our programs run in: freed memory is kept, and what the user set stays."""

import os
import subprocess
import sys

import pytest

PAGE_FAULTS = """
import resource, sys
from modeling.machine import memory_is_kept, prepare_process
if sys.argv[1] == "prepared":
    prepare_process()
import torch
torch.set_num_threads(1)
network = torch.nn.Sequential(
    torch.nn.Conv2d(3, 32, 3), torch.nn.SiLU(), torch.nn.Conv2d(32, 32, 3), torch.nn.SiLU(), torch.nn.Conv2d(32, 64, 3)
)
images = torch.ones(4, 3, 224, 224)  # a feature map takes 25 MB or more, which glibc would map and unmap each time
faults = []
for step in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    network(images).mean().backward()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[-3:]), memory_is_kept())
"""


def page_faults(case: str) -> tuple[int, bool]:
    run = subprocess.run([sys.executable, "-c", PAGE_FAULTS, case], capture_output=True, text=True, check=True)
    faults, kept = run.stdout.split()
    return int(faults), kept == "True"


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_used_again() -> None:
    faults, kept = page_faults("prepared")
    if not kept:
        pytest.skip("this C library has no mallopt")
    before, _ = page_faults("as it is")
    assert faults < before / 20


def test_waiting_threads_sleep_unless_the_user_says_otherwise() -> None:
    script = "import os; from modeling.machine import prepare_process; prepare_process(); print(os.environ['OMP_WAIT_POLICY'])"
    for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        if given:
            environment["OMP_WAIT_POLICY"] = given
        run = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == expected


def test_it_comes_before_torch() -> None:
    script = "import sys, modeling.machine; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
