"""The fork server: imports the libraries once, then forks one worker for each case.

Run by the engine as `python -m bench.measure.server FD [MODULE...]`, FD being its end of a socket.
It is kept apart from multiprocessing's own fork server, which tells how a child ended too, but is
one for the whole process and all that runs in it: one list of modules to preload, where each
session has its own; and it runs the parent's main module again in every child (here: pytest).

Requests (`bench.measure.messages`), one a packet: {"do": "fork", "warm": [model type, auto class]}
with two file descriptors (the worker's line, its standard error), for its process id; {"do":
"wait", "pid": N}, for its status as `os.waitpid` gives it once that worker has ended. The first
message, unasked, is {"result": {"gpus": N}}.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import socket
import sys

from bench.measure.messages import Line, decoded, encoded

PRELOAD = ("torch", "torch._dynamo", "transformers", "bench.measure.worker")
_NOT_BEFORE_CUDA = (
    "peft",
    "bitsandbytes",
    "transformers.integrations.bitsandbytes",
    "peft.tuners.lora.bnb",
)
"""Modules whose import starts CUDA where there is a GPU (PEFT's by importing bitsandbytes)."""
_SIZE = 1 << 16


def main(control_fd: int, modules: list[str]) -> None:
    """Serve until the parent closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    control = socket.socket(fileno=control_fd)
    gc.disable()  # of what is imported nothing is garbage
    gpus = _preload(modules)
    gc.enable()
    control.send(encoded({"result": {"gpus": gpus}}))
    while True:
        data, fds, _, _ = socket.recv_fds(control, _SIZE, 2)
        if not data:
            os._exit(0)  # the parent is gone; workers die with this process
        request = decoded(data)
        if request["do"] == "wait":
            control.send(encoded({"result": os.waitpid(request["pid"], 0)[1]}))
            continue
        _warm(*request["warm"])
        gc.freeze()  # children neither scan nor copy what is already here
        if (pid := os.fork()) == 0:
            control.close()
            _become_worker(fds[0], fds[1], modules, gpus)
        for fd in fds:
            os.close(fd)
        control.send(encoded({"result": pid}))


def _preload(modules: list[str]) -> int:
    """Import everything; the number of GPUs."""
    for name in (*modules, *PRELOAD):
        importlib.import_module(name)
    import torch

    from bench.training.loading import quiet_libraries

    quiet_libraries()  # before bitsandbytes is imported
    gpus: int = torch.cuda.device_count()
    if not gpus:
        for name in _NOT_BEFORE_CUDA:
            importlib.import_module(name)
        _rehearse()
    return gpus


def _rehearse() -> None:
    """Wrap a tiny model that has no memory: the libraries fill caches then, a quarter second's
    worth, that every worker would fill for itself."""
    from bench.training.cases import Case
    from bench.training.loading import adapt, make_config, meta_model

    size = {"dim": 8, "hidden_dim": 8, "n_heads": 1, "n_layers": 1, "vocab_size": 8}
    config = {"model_type": "distilbert", **size}
    adapter = {"task_type": "SEQ_CLS", "target_modules": ["q_lin"]}
    case = Case("", config, "AutoModelForSequenceClassification", "", adapter, "fp32")
    adapt(case, meta_model(case, make_config(case)))


def _warm(model_type: str, auto_class: str) -> None:
    """Import the model's code here, once. A failure is left for the worker to meet and report."""
    with contextlib.suppress(Exception):
        import transformers

        config = type(transformers.AutoConfig.for_model(model_type))
        getattr(transformers, auto_class)._model_mapping[config]


def _become_worker(connection_fd: int, error_fd: int, modules: list[str], gpus: int) -> None:
    from bench.compat import private
    from bench.measure import worker

    status = 1
    try:
        _die_with_parent()
        os.dup2(error_fd, 1)
        os.dup2(error_fd, 2)
        os.close(error_fd)
        # Something has started CUDA in the server after all. Without a GPU this is no hindrance,
        # and usual: where there is no driver, torch asks CUDA itself how many GPUs there are.
        if gpus and private("bad fork")():
            os.set_inheritable(connection_fd, True)
            own = [sys.executable, "-m", "bench.measure.server", "--worker", str(connection_fd)]
            os.execv(sys.executable, [*own, *modules])
        worker.serve(Line(connection_fd))
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        # Never return into the server's loop, nor run the exit handlers that it registered.
        os._exit(status)


def _die_with_parent() -> None:
    """Have the kernel kill this process when the server ends, however it ends (Linux)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG in linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _fresh_worker(connection_fd: int, modules: list[str]) -> None:
    """Be a worker in an interpreter of its own."""
    from bench.measure import worker

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in modules:
        importlib.import_module(name)
    worker.serve(Line(connection_fd))


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        _fresh_worker(int(sys.argv[2]), sys.argv[3:])
    else:
        main(int(sys.argv[1]), sys.argv[2:])
