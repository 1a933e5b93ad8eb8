"""Ports of this machine for servers of tests, harnesses and CI."""

import os
import random
import socket


def free_port() -> int:
    """Return a port on which nothing listens; parallel test processes draw from different ranges."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for port in random.SystemRandom().sample(range(20_000 + 1000 * (worker % 12), 21_000 + 1000 * (worker % 12)), 100):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port was found; end servers that tests have left.")
