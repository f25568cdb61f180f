"""A `python` whose start is a fork: it stands in the interpreter's place (see warm.py).

Run by a bare interpreter. It hands its arguments, folder, environment and open files to the warm
process, passes on the signals that it gets, and ends as the forked child did. Where a fork is not
as good as a start, the real interpreter takes this process's place.
"""

import json
import os
import signal
import socket

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
OPTIONS = ("-P", "-B", "-u")
# Read while the interpreter or a library starts: with another value, it is started.
AT_START = (
    "PYTHON", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TORCH_", "TORCHDYNAMO_", "PYTORCH_", "CUDA_",
    "BNB_", "OMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "KMP_", "LC_", "LANG", "TZ", "LD_", "MALLOC_",
    "MPL", "COV", "HIDDEN",
)  # fmt: skip
# ... and this is the value that the warm process was started with, whatever ours were.
AS_IT_IS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
            "NUMEXPR_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # fmt: skip
# ... but for what the child takes over, what is read only when it is asked for (Ray leaves its own
# breakpoint in the process that called it), and what says nothing where there is no GPU.
TAKEN_OVER = (
    "PYTHONPATH", "PYTHONSAFEPATH", "PYTHONBREAKPOINT", "LC_CTYPE", "TRANSFORMERS_VERBOSITY",
    "PYTORCH_NVML_BASED_CUDA_CHECK", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip


def can_fork(arguments: list[str], theirs: dict[str, str]) -> bool:
    """Whether a child of a process that was started with the environment `theirs` is as good."""
    first = next((word for word in arguments if word not in OPTIONS), "-")
    if first.startswith("-") and not first.startswith(("-m", "-c")):
        return False  # another option of the interpreter, or what to run comes from its input
    if any(os.isatty(number) for number in (0, 1, 2) if number in open_files()):
        return False  # the child has a session of its own, and no terminal
    differ = {name for name, _ in {**AS_IT_IS, **os.environ}.items() ^ theirs.items()}
    return not any(name.startswith(AT_START) and name not in TAKEN_OVER for name in differ)


def open_files() -> list[int]:
    """The descriptors that this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:
            continue  # that of the folder, which is closed again
        found.append(int(name))
    return sorted(found)


def main(address: str, python: str, arguments: list[str]) -> None:
    """`python arguments`, by the process that listens at `address` if that can be."""
    files = open_files()
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        control.connect(address)
        warm = can_fork(arguments, json.loads(control.recv(1 << 20)))
    except (OSError, ValueError):  # it is not there, or no more
        warm = False
    if not warm:
        control.close()
        os.execv(python, [python, *arguments])
    child: list[int] = []
    early: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        if child:
            os.kill(child[0], number)
        else:
            early.append(number)

    ignored = [int(number) for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN]
    for number in PASSED_ON:
        if number not in ignored:
            signal.signal(number, pass_on)
    request = {
        "arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ),
        "files": files, "ignored": ignored,
    }  # fmt: skip
    socket.send_fds(control, [json.dumps(request).encode()], files)
    for number in files:
        os.close(number)  # the child's alone: where it closes one, the other end is to hear of it
    child.append(int(control.recv(64)))
    for number in early:
        os.kill(child[0], number)
    status = os.waitstatus_to_exitcode(int(control.recv(64) or signal.SIGKILL))
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)
