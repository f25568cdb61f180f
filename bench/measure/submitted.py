"""One call somewhere in a Ray cluster, begun anew where its node is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from bench.compat import private
from bench.errors import BenchError
from bench.measure.nodes import Node, last_line

ATTEMPTS = 3
"""How often a task begins at most: one that ends its node each time is not worth all of them."""
LOOK_SECONDS = 5.0
"""Between two looks at which nodes are left."""
NODE_ID = "ray.io/node-id"

_NOBODY = "no node of this kind of machine is left in the cluster"


class NodeLost(Exception):
    """The node that a task ran on was gone before its end, or its process there, each time."""


class Submitted:
    """`call`, a module's function and its arguments, queued for one of `nodes`; `asks`: what it
    needs there. `reruns`: how often it began anew elsewhere.

    Ray begins a task anew when the connection to it breaks. A host that loses its power or its
    network breaks none: Ray gives up the node within about a minute, and the task after seven; its
    servers refuse to be asked more often ("too many pings"), and healthy tasks end.
    """

    def __init__(
        self, call: tuple[Callable[..., Any], *tuple[Any, ...]], nodes: Sequence[Node],
        asks: Mapping[str, float],
    ) -> None:  # fmt: skip
        self.reruns = 0
        self._nodes = nodes
        one_of = f"in({','.join(node.id for node in nodes)})"
        self.reference = _remote().options(**asks, label_selector={NODE_ID: one_of}).remote(*call)

    def answer(self) -> Any:
        """What the call returned, waited for; raises what it raised. NodeLost after ATTEMPTS, and
        BenchError where none of its nodes is left."""
        import ray
        from ray import exceptions

        while not ray.wait([self.reference], timeout=LOOK_SECONDS)[0]:
            self.look()
        try:
            self.reruns, answer = ray.get(self.reference)
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
        return answer

    def look(self) -> None:
        """BenchError where none of its nodes is left."""
        import ray

        alive = {found["NodeID"] for found in ray.nodes() if found["Alive"]}
        if not any(node.id in alive for node in self._nodes):
            raise BenchError(_NOBODY)

    def cancel(self) -> None:
        """Do not begin it, or end it."""
        import ray

        with contextlib.suppress(Exception):  # done, or nobody is left to tell
            ray.cancel(self.reference, force=True)


@cache
def _remote() -> Any:
    """One for all of them: tasks of one function and like needs share a queue."""
    import ray

    return ray.remote(max_retries=ATTEMPTS - 1)(_carry_out)


def _carry_out(function: Callable[..., Any], *arguments: Any) -> tuple[int, Any]:
    """How often this task was begun before, and its answer."""
    import ray

    worker = ray.get_runtime_context().worker
    return private("attempt of a task")(worker.core_worker), function(*arguments)
