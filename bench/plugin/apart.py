"""`pytest suites/ --trust-remote-code`, in the worker process that may run a repository's code."""

from __future__ import annotations

import sys

import pytest

from bench.models.apart import in_worker, run_apart, say_status, worker_pipe
from bench.plugin.cluster import run_by_kind
from bench.process import collect_seldom


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """The process that was called runs no such code: it starts another pytest, and waits. One that
    may goes on by itself, unless a cluster is of several kinds of machine."""
    if not config.option.trust_remote_code or in_worker():
        return run_by_kind(config)
    from bench.errors import BenchError
    from bench.units import harmless

    arguments = [str(argument) for argument in config.invocation_params.args]
    try:
        return run_apart("lora_target_bench.plugin.apart", arguments)
    except BenchError as error:
        print(harmless(f"error: {error}"), file=sys.stderr)
        return 2


def main() -> int:
    """The worker's side: pytest with the same arguments; its exit status is said when it ends."""
    collect_seldom()
    pipe = worker_pipe()
    status = int(pytest.main(sys.argv[1:]))
    if pipe is not None:
        say_status(pipe, status)
    return status


if __name__ == "__main__":
    sys.exit(main())
