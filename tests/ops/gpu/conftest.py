"""Leave out the tests of kernels where there is nothing to run them on."""

import pytest

from tests.ops.gpu.device import CAN_RUN, KERNEL_TESTS

collect_ignore = [] if CAN_RUN else list(KERNEL_TESTS)


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker of this folder."""
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
