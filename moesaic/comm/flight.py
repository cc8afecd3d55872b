"""Rows on their way while this process computes, and the gradients on theirs.

`depart` begins an exchange and `arrive` waits for it. In backward each does the other's part: `arrive` begins to send
the gradients back, `depart` waits for them. Backward runs last what was made first, so an order that hides the messages
of the forward hides those of the backward too:

    forward     depart 0   depart 1   arrive 0   compute 0   arrive 1   compute 1
    backward    waits 0    waits 1    begins 0   compute 0   begins 1   compute 1       from right to left
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moesaic.comm.all_to_all import Exchange
from moesaic.comm.line import Arrival


class Flight:
    """Rows that have departed; they arrive once.

    Args:
        exchange: that moves them.
        back: whether they go back to where they came from.
        on_gradients: called when their gradients have come.
    """

    def __init__(self, exchange: Exchange, back: bool, on_gradients: Callable[[], None] | None) -> None:
        self._exchange = exchange
        self._back = back
        self._on_gradients = on_gradients
        self._arrival: Arrival | None = None
        self.ticket: Tensor | None = None

    def begin(self, rows: Tensor, gradients: bool = False) -> None:
        """Begin to send rows, or their gradients the other way."""
        self._arrival = self._exchange.begin(rows.detach(), self._back != gradients)

    def wait(self) -> Tensor:
        """Return what has come."""
        assert self._arrival is not None, "what was begun comes, once"
        arrival, self._arrival = self._arrival, None
        return arrival.result()

    def wait_for_gradients(self) -> Tensor:
        """Return the gradients that have come."""
        grad = self.wait()
        if self._on_gradients is not None:
            self._on_gradients()
        return grad


def depart(
    exchange: Exchange, rows: Tensor, back: bool = False, on_gradients: Callable[[], None] | None = None
) -> Flight:
    """Begin to send rows, as `Exchange.send` or `send_back` does; all ranks must begin alike.

    Args:
        on_gradients: called in backward, when the gradients of the rows have come.
    """
    flight = Flight(exchange, back, on_gradients)
    flight.ticket = _Depart.apply(rows, flight)
    return flight


def arrive(flight: Flight) -> Tensor:
    """Return the rows of a flight when they have come; differentiable."""
    ticket, flight.ticket = flight.ticket, None
    return _Arrive.apply(ticket, flight)


class _Depart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, flight: Flight) -> Tensor:
        ctx.flight = flight
        flight.begin(rows)
        return rows.new_empty(0)  # what ties the two together; the rows are not there yet

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.flight.wait_for_gradients(), None


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, flight: Flight) -> Tensor:
        ctx.flight = flight
        return flight.wait()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.flight.begin(grad, gradients=True)
        return grad.new_empty(0), None
