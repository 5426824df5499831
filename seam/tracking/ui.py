"""`seam ui`: MLflow's pages on the database of a parameter set, for this machine alone."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from types import FrameType
from typing import NoReturn

from seam.errors import SeamError
from seam.experiment.params import Params
from seam.tracking.store import Store, database, experiment, is_server, public, quiet, uri
from seam.tracking.view import address

HOST, PORT = "127.0.0.1", 5000
# Of MLflow: without half a dozen processes for jobs of language models, and without a warning of its own code.
QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
PATIENCE = 180.0  # seconds until the server must answer


def serve(params: Params, port: int | None = None) -> None:
    """Start MLflow on the parameters' database, print the view's address, and stay until Ctrl-C or SIGTERM.

    port: by default 5000, or a free one where that is taken. With a tracking server there is nothing to start: only
    the address is printed. Raises SeamError when the database does not exist, the port is taken, or MLflow fails.
    """
    place = uri(params)
    file = database(place)
    if file and not file.exists():
        raise SeamError(f"{file}: no such database; run `seam log` (or the whole pipeline) first")
    if is_server(place):
        print(f"MLflow: {address(public(place), Store(place, experiment(params)).experiment_id)}")
        return
    port = free_port(port)
    store = Store(place, experiment(params))
    store.show()
    quiet()
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", place, "--host", HOST, "--port", str(port)]
    command += ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    before = signal.signal(signal.SIGTERM, _stop)
    # In a group of its own: a terminal's Ctrl-C reaches this process alone, which then ends the server's processes.
    process = subprocess.Popen(command, env={**QUIET, **os.environ}, stdout=sys.stderr.fileno(), start_new_session=True)
    try:
        _wait_for(f"http://{HOST}:{port}", process)
        print(f"MLflow: {address(f'http://{HOST}:{port}', store.experiment_id)}\nCtrl-C ends it", flush=True)
        process.wait()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        _end(process)


def free_port(wanted: int | None = None) -> int:
    """The wanted port, or 5000, or where that is taken any free one; SeamError if the wanted one is taken."""
    for port in (wanted,) if wanted else (PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                problem = error.strerror
            else:
                return probe.getsockname()[1]
    raise SeamError(f"--port {wanted}: {problem}; give another, or none for a free one")


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _wait_for(server: str, process: subprocess.Popen) -> None:
    """Until the server answers; SeamError when it ends before, or does not answer."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise SeamError(f"mlflow: no answer from its server on {server}; its messages are above")


def _end(process: subprocess.Popen) -> None:
    for signum in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signum)
            process.wait(10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
