"""Leave out the tests of kernels where there is nothing to run them on."""

from tests.ops.gpu.device import CAN_RUN, KERNEL_TESTS

collect_ignore = [] if CAN_RUN else list(KERNEL_TESTS)
