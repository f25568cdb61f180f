"""One call somewhere in a Ray cluster, begun anew where its node is lost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

from bench.compat import private
from bench.errors import BenchError
from bench.measure.nodes import Node, last_line

ATTEMPTS = 3
"""How often a task begins at most: one that ends its node each time is not worth all of them."""
LOOK_SECONDS = 5.0
"""Between two looks at which nodes are left."""
NODE_ID = "ray.io/node-id"

_SILENT_SECONDS = 10.0
"""How long Ray itself has for a task whose node it has given up."""
_NOBODY = "no node of this kind of machine is left in the cluster"


class NodeLost(Exception):
    """The node that a task ran on was gone before its end, or its process there, each time."""


class Submitted:
    """`call`, a module's function and its arguments, queued for one of `nodes`; `asks`: what it
    needs there. `reruns`: how often it began anew elsewhere.

    Ray begins a task anew when the connection to it breaks. A host that loses its power or its
    network breaks none: Ray gives up the node within a minute, and the task after seven, and asking
    more often makes it end healthy ones ("too many pings"). So each task leaves a note of where
    it is, and is sent again where that node was given up.
    """

    def __init__(
        self, call: tuple[Callable[..., Any], *tuple[Any, ...]], nodes: Sequence[Node],
        asks: Mapping[str, float],
    ) -> None:  # fmt: skip
        self.reruns = 0
        self._call, self._nodes, self._asks = call, nodes, asks
        self._before = 0
        self._send()

    def _send(self) -> None:
        import ray

        self._ticket = uuid4().hex
        self._silent_since: float | None = None
        one_of = f"in({','.join(node.id for node in self._nodes)})"
        self.reference = ray.remote(
            **self._asks,
            max_retries=ATTEMPTS - 1 - self._before,
            label_selector={NODE_ID: one_of},
        )(_carry_out).remote(self._ticket, *self._call)

    def answer(self) -> Any:
        """What the call returned, waited for; raises what it raised. NodeLost after ATTEMPTS, and
        BenchError where none of its nodes is left."""
        import ray
        from ray import exceptions

        while not ray.wait([self.reference], timeout=LOOK_SECONDS)[0]:
            self.look()
        try:
            attempt, answer = ray.get(self.reference)
        except exceptions.RayTaskError as error:
            raise error.cause from None
        except exceptions.TaskUnschedulableError:
            raise BenchError(_NOBODY) from None
        except exceptions.RayError as error:
            self.reruns = ATTEMPTS - 1
            raise NodeLost(
                f"the node or its process was gone in each of {ATTEMPTS} attempts: "
                f"{last_line(error)}"
            ) from None
        self.reruns = self._before + attempt
        return answer

    def look(self) -> None:
        """Send it again where its node is given up. BenchError where none of its nodes is left."""
        import ray

        alive = {found["NodeID"] for found in ray.nodes() if found["Alive"]}
        if not any(node.id in alive for node in self._nodes):
            raise BenchError(_NOBODY)
        node, _, attempt = (_note(self._ticket) or "").partition(" ")
        if not node or node in alive:
            self._silent_since = None
            return
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since >= _SILENT_SECONDS:
            begun = self._before + int(attempt) + 1
            if begun < ATTEMPTS:  # else its error comes, in time
                self.cancel()
                self._before = begun
                self._send()

    def cancel(self) -> None:
        """Do not begin it, or end it."""
        import ray

        with contextlib.suppress(Exception):  # done, or nobody is left to tell
            ray.cancel(self.reference, force=True)


def _note(ticket: str) -> str | None:
    found = private("note of a task")(ticket.encode(), namespace=_NOTES)
    return None if found is None else found.decode()


_NOTES = "lora-target-bench"


def _carry_out(ticket: str, function: Callable[..., Any], *arguments: Any) -> tuple[int, Any]:
    """How often this task was begun before, and its answer."""
    import ray

    here = ray.get_runtime_context()
    attempt = private("attempt of a task")(here.worker.core_worker)
    private("leave a note")(
        ticket.encode(), f"{here.get_node_id()} {attempt}".encode(), namespace=_NOTES
    )
    return attempt, function(*arguments)
