"""Memory that tensors leave to those that come after them."""

import gc
import random
import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from moesaic.hw.blocks import BLOCKS, Blocks, new_rows

MIB = 2**20


def test_memory_goes_to_the_next_tensor_of_its_size_when_a_tensor_has_gone() -> None:
    blocks = Blocks()
    first, second = (blocks.new_empty((MIB, 2), torch.bfloat16) for _ in range(2))
    assert first.shape == (MIB, 2)
    assert first.dtype == torch.bfloat16
    assert first.data_ptr() != second.data_ptr()
    assert blocks.held_bytes == 0
    at = first.data_ptr()
    del first
    assert blocks.held_bytes == 4 * MIB
    # In another shape and dtype, and a little shorter.
    third = blocks.new_empty((MIB - 5,), torch.float32)
    assert third.data_ptr() == at
    assert blocks.held_bytes == 0


def test_memory_stays_when_a_view_of_the_tensor_is_left() -> None:
    blocks = Blocks()
    tensor = blocks.new_empty((MIB,), torch.float32).fill_(3)
    view = tensor[10:20]
    del tensor
    other = blocks.new_empty((MIB,), torch.float32).zero_()
    assert torch.equal(view, torch.full((10,), 3.0))
    del view
    assert blocks.held_bytes == other.nbytes


def test_block_goes_to_no_tensor_of_another_size_when_it_is_free() -> None:
    blocks = Blocks()
    blocks.new_empty((2 * MIB,), torch.uint8)
    small = blocks.new_empty((MIB,), torch.uint8)
    assert blocks.held_bytes == 2 * MIB
    assert blocks.new_empty((100,), torch.uint8).numel() == 100  # the heap's
    assert blocks.held_bytes == 2 * MIB
    del small
    assert blocks.held_bytes == 3 * MIB


def test_block_is_let_go_when_nobody_has_wanted_it_for_long() -> None:
    blocks = Blocks()
    blocks.new_empty((5 * MIB,), torch.uint8)
    for _ in range(100):
        blocks.new_empty((MIB,), torch.uint8)
    assert blocks.held_bytes == 6 * MIB
    kept = blocks.new_empty((2 * MIB,), torch.uint8)
    assert blocks.held_bytes == MIB
    del kept
    assert blocks.held_bytes == 3 * MIB


def test_gradient_is_taken_as_it_is_when_a_parameter_has_none() -> None:
    """A copy would be a second large tensor, and from the heap."""
    blocks = Blocks()

    class Grow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):  # type: ignore[no-untyped-def]
            return weight.sum()

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            return blocks.new_empty((MIB,), torch.float32).fill_(grad.item())

    weight = torch.zeros(MIB, requires_grad=True)
    Grow.apply(weight).backward()
    assert weight.grad is not None
    gc.collect()
    assert blocks.held_bytes == 0
    weight.grad = None
    assert blocks.held_bytes == 4 * MIB


def test_missing_memory_is_told_when_there_is_none() -> None:
    with pytest.raises(MemoryError, match="no memory for a tensor of"):
        Blocks().new_empty((2**61,), torch.uint8)


def test_rows_have_a_block_when_the_others_have_memory_of_the_cpu() -> None:
    rows = new_rows(torch.zeros(3, 2048, 2), 300)
    assert rows.shape == (300, 2048, 2)
    held = BLOCKS.held_bytes
    del rows
    assert BLOCKS.held_bytes > held
    assert new_rows(torch.zeros(3, 2048, device="meta"), 300).device.type == "meta"
    with FakeTensorMode():
        assert isinstance(new_rows(torch.zeros(3, 2048), 300), FakeTensor)


def test_no_memory_is_two_tensors_when_threads_ask_at_once() -> None:
    blocks, wrong = Blocks(), []

    def use(number: int) -> None:
        source = random.Random(number)
        for turn in range(200):
            tensor = blocks.new_empty([2**18 + 2**16 * source.randrange(4)], torch.float32)
            tensor.fill_(1000 * number + turn)
            if not bool((tensor == 1000 * number + turn).all()):
                wrong.append((number, turn))

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    gc.collect()
    assert blocks.held_bytes > 0
