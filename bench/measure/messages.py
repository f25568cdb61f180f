"""How the processes of a measurement speak with each other: JSON, an object a message.

A request is {"do": NAME, ...}. While it is carried out, {"note": ...} may say how far it has come;
{"result": ...} or {"failed": ...} ends it. A worker's line and that of an environment of `bench ab`
are a `Line`; the fork server's is a socket that passes descriptors, with the same messages.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any


def encoded(message: Mapping[str, Any]) -> bytes:
    """A message as it is sent."""
    return json.dumps(message).encode()


def decoded(data: bytes) -> dict[str, Any]:
    """A message as it was sent."""
    message: dict[str, Any] = json.loads(data)
    return message


class Line:
    """One end of a line between two processes, over the descriptor of a socket."""

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)

    @classmethod
    def with_other_end(cls) -> tuple[Line, socket.socket]:
        """A line, and its other end to hand to a child and close here."""
        ours, theirs = socket.socketpair()
        return cls(ours.detach()), theirs

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises OSError where the other end is gone."""
        self._connection.send_bytes(encoded(message))

    def receive(self) -> dict[str, Any]:
        """The next message. Raises EOFError or OSError where the other end is gone."""
        return decoded(self._connection.recv_bytes())

    def ready(self, seconds: float | None) -> bool:
        """Whether there is something to receive, or the other end is gone, within `seconds`."""
        return self._connection.poll(seconds)

    def close(self) -> None:
        """The other end receives an EOFError."""
        self._connection.close()
