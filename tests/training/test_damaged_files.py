"""Every reader of a configuration, given damaged and hostile files: what cannot be read is refused in a sentence.

The short form of fuzz_config.py. That of metrics.json is in test_card.py, which has one.
"""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stress import fuzz_config
from stress.fuzz_images import mutated

pytestmark = pytest.mark.slow

SHORT = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def readers(tmp_path_factory) -> dict[str, fuzz_config.Reader]:
    folder = tmp_path_factory.mktemp("config")
    return fuzz_config.make_readers(fuzz_config.make_model_folder(folder / "original"), folder)


NAMES = ["config", "options", "run", "splits", "weights"]


@pytest.mark.parametrize("name", NAMES)
def test_every_reader_reads_a_valid_file(readers, name):
    assert readers[name].read(readers[name].seed)


@pytest.mark.parametrize("name", NAMES)
def test_every_changed_structure_is_read_or_refused_in_a_sentence(readers, name):
    reader = readers[name]

    @SHORT
    @given(st.deferred(lambda: fuzz_config.changed(reader.structure)))
    def read(tree):
        reader.read(reader.encode(tree))

    read()


@pytest.mark.parametrize("name", NAMES)
def test_changed_bytes_are_read_or_refused_in_a_sentence(readers, name):
    reader, rng = readers[name], random.Random(0)
    for content in [*reader.extra, *(mutated(rng, [reader.seed]) for _ in range(20))]:
        reader.read(content)


def test_the_harness_runs_by_one_command(tmp_path):
    script = Path(fuzz_config.__file__)
    text = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--seconds" in text
