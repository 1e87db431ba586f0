"""A server that speaks S3, moto's, in a process of its own, and buckets on it."""

import os
import socket
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager

import pytest

from elm_jax import storage


@contextmanager
def serve():
    """Runs the server while the block runs; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            assert process.poll() is None
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def s3():
    """The address of a server, which this process and those that it starts take for Amazon's."""
    for package in ("moto", "s3fs"):
        pytest.importorskip(package)
    with serve() as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("NO_PROXY", f"{os.environ.get('NO_PROXY', '')},127.0.0.1")
        yield address


@pytest.fixture
def bucket(s3):
    """A bucket, and nothing in it."""
    import fsspec

    name = f"s3://elm-{uuid.uuid4().hex}"
    storage.path(name)  # sets up fsspec
    fsspec.filesystem("s3").mkdir(name)
    return storage.path(name)


def objects(place):
    """Returns the names of all objects below a path."""
    import fsspec

    found = fsspec.filesystem("s3").find(str(place))
    return sorted(f"s3://{name}".removeprefix(f"{place}/") for name in found)
