"""Deadlines and a limit for connections, between asyncio's transport and aiohttp's protocol.

aiohttp has no deadline for reading a request or for a client that does not read its answer. Here a connection that is
not being worked on has ``patience`` seconds, from its start or from the end of its last request, to deliver the next
complete head; then it is cut. Bytes that trickle in buy no time. Beyond ``most`` connections, the one that has been
waiting longest makes room, so that whoever holds a thousand of them open does not keep others out.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import cast


class Connections:
    """The protocol factory to hand to ``loop.create_server``; ``inner`` makes the protocol that does the work."""

    def __init__(self, inner: Callable[[], asyncio.Protocol], *, patience: float, most: int) -> None:
        self._inner = inner
        self._waiting: OrderedDict[Connection, None] = OrderedDict()  # longest waiting first
        self._most = most
        self.patience = patience
        self.open = 0

    def __call__(self) -> Connection:
        return Connection(self, self._inner())

    def opened(self) -> None:
        self.open += 1
        if self.open > self._most and self._waiting:
            oldest, _ = self._waiting.popitem(last=False)
            oldest.cut()

    def waits(self, connection: Connection) -> None:
        self._waiting[connection] = None
        self._waiting.move_to_end(connection)

    def works(self, connection: Connection) -> None:
        self._waiting.pop(connection, None)

    def closed(self, connection: Connection) -> None:
        self.open -= 1
        self._waiting.pop(connection, None)


class Connection(asyncio.Protocol):
    """One connection: passes everything on, and owns the timer."""

    def __init__(self, connections: Connections, inner: asyncio.Protocol) -> None:
        self._connections = connections
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    @staticmethod
    def of(transport: asyncio.BaseTransport | None) -> Connection | None:
        """The connection that a request came in on."""
        protocol = transport.get_protocol() if transport is not None else None
        return protocol if isinstance(protocol, Connection) else None

    def begin(self) -> None:
        """A request's head is complete and is being answered: its handler has deadlines of its own."""
        self._connections.works(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self) -> None:
        """The handler is done: sending the rest of the answer and receiving the next head share one deadline."""
        if self._transport is None:
            return
        self.begin()
        self._connections.waits(self)
        self._timer = asyncio.get_running_loop().call_later(self._connections.patience, self.cut)

    def cut(self) -> None:
        # not close(): that waits until a client has read everything, which one that does not read never does
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connections.opened()
        self._inner.connection_made(transport)
        self.end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.begin()
        self._transport = None
        self._connections.closed(self)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
