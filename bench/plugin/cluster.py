"""`pytest suites/ --cluster ADDRESS`: measured on a Ray cluster, a run for each kind of machine."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import IO

import pytest

from bench.baselines.machines import MachineKind, choose_kinds, machine_kinds
from bench.errors import BenchError, missing_extra
from bench.models.apart import handed_on
from bench.plugin.options import begin_verdicts, check_given
from bench.plugin.state import CLUSTER, KIND, under_xdist
from bench.units import harmless


def run_by_kind(config: pytest.Config) -> int | None:
    """Connect before anything else. Of one kind of machine this process makes the run (None); of
    several, a process each, all at once: the worst of their exit statuses."""
    from bench.measure.cluster import Cluster

    option = config.option
    if option.cluster is None or option.collectonly or option.help or option.version:
        return None
    if under_xdist(config):
        return _refused("--cluster does not go with pytest-xdist: tasks are spread by Ray already")
    try:
        begin_verdicts(config)
        check_given(config)
    except BenchError as error:
        return _refused(str(error))
    cluster = Cluster(option.cluster)
    try:
        with cluster.kept():
            kinds = choose_kinds(machine_kinds(cluster.nodes), option.machine)
    except ModuleNotFoundError as error:
        if not (line := missing_extra(error)):
            raise
        return _refused(line)
    except BenchError as error:
        return _refused(str(error))
    except KeyboardInterrupt:  # pytest's own line for it comes with the session, which is not there
        return _refused("interrupted while the nodes were asked what they are: nothing was begun")
    if len(kinds) == 1:
        config.add_cleanup(cluster.close)
        config.stash[CLUSTER], config.stash[KIND] = cluster, kinds[0]
        return None
    cluster.close()
    print(f"a run for each kind of machine: {', '.join(kind.label for kind in kinds)}", flush=True)
    return _runs(config, kinds)


def _refused(line: str) -> int:
    print(harmless(f"error: {line}"), file=sys.stderr)
    return 2


def _runs(config: pytest.Config, kinds: list[MachineKind]) -> int:
    """This very run of each kind; every line of it after the kind's name."""
    arguments = [str(argument) for argument in config.invocation_params.args]
    runs = []
    for kind in kinds:
        command = [sys.executable, "-P", "-m", "pytest", *arguments, f"--machine={kind.name}"]
        # A terminal's Ctrl-C comes from us, once.
        run = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        assert run.stdout is not None
        reader = threading.Thread(target=_tell, args=(kind.name, run.stdout))
        reader.start()
        runs.append((run, reader))
    with handed_on(*(run for run, _ in runs)):
        for run, _ in runs:
            run.wait()
    for _, reader in runs:
        reader.join()
    return max(run.returncode if run.returncode >= 0 else 2 for run, _ in runs)


def _tell(name: str, said: IO[str]) -> None:
    for line in said:
        print(f"{name} | {line}", end="", flush=True)
