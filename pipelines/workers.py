"""Several processes on one search: a chief that proposes, workers that train.

The protocol is KerasTuner's (gRPC, its environment variables); what it lacks is added: a worker
that falls silent loses its trial to another one, and the chief ends when the search does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent import futures

import grpc
import keras_tuner
from keras_tuner.engine import trial as kt
from keras_tuner.src import protos
from keras_tuner.src.distribute.oracle_chief import OracleServicer
from keras_tuner.src.distribute.oracle_client import OracleClient

from .oracle import Oracle
from .recipe import RecipeError
from .run import RunError

log = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1:8765"
_BEAT = 2.0  # seconds between a worker's signs of life
SILENCE = 20.0  # seconds without one after which a worker counts as dead


@contextlib.contextmanager
def part(role: str, chief: str) -> Iterator[None]:
    """KerasTuner's environment variables for this process."""
    host, colon, port = chief.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise RecipeError(f"--chief is HOST:PORT, e.g. {LOOPBACK}; got {chief!r}.")
    names = {
        "KERASTUNER_ORACLE_IP": host,
        "KERASTUNER_ORACLE_PORT": port,
        "KERASTUNER_TUNER_ID": role if role == "chief" else f"worker-{uuid.uuid4().hex[:8]}",
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def wait_for_chief(oracle: Oracle) -> None:
    """Returns once the chief answers; up to KerasTuner's hour."""
    log.info("waiting for the chief")
    try:
        OracleClient(oracle).get_space()
    except grpc.RpcError as error:
        raise RunError(
            f"No chief answers ({error.code().name}). Start one with --role chief."
        ) from None


class Pulse:
    """A worker's signs of life while it trains, from a thread of its own."""

    def __init__(self, oracle: OracleClient, trial_id: str):
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(oracle, trial_id), daemon=True)
        self._thread.start()

    def _beat(self, oracle: OracleClient, trial_id: str) -> None:
        while not self._ended.wait(_BEAT):
            with contextlib.suppress(grpc.RpcError):
                oracle.get_trial(trial_id)

    def stop(self) -> None:
        """No further ones."""
        self._ended.set()


class SharedOracle(Oracle):
    """The oracle of a chief: knows when it last heard of each worker."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._heard: dict[str, float] = {}

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> kt.Trial:
        self._heard[tuner_id] = time.monotonic()
        return super().create_trial(tuner_id)

    @keras_tuner.synchronized
    def get_trial(self, trial_id: str) -> kt.Trial:
        for tuner_id, trial in self.ongoing_trials.items():
            if trial.trial_id == trial_id:
                self._heard[tuner_id] = time.monotonic()
        return super().get_trial(trial_id)

    @keras_tuner.synchronized
    def release_silent(self) -> None:
        """Takes the trials of workers that are silent for too long, for others to go on with."""
        for tuner_id in list(self.tuner_ids):
            if time.monotonic() - self._heard.get(tuner_id, 0.0) < SILENCE:
                continue
            self.tuner_ids.discard(tuner_id)
            if trial := self.ongoing_trials.pop(tuner_id, None):
                self._retry_queue.append(trial.trial_id)
                log.warning("%s fell silent; trial %d is free", tuner_id, int(trial.trial_id) + 1)

    @keras_tuner.synchronized
    def is_over(self) -> bool:
        """Whether no trial is left, and every worker has been told so."""
        left = self.ongoing_trials or self._retry_queue or self.tuner_ids
        return bool(self.stopped) and not left


def serve(oracle: SharedOracle, address: str) -> None:
    """Answers workers until the search is over."""
    servicer = OracleServicer(oracle)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    protos.get_service_grpc().add_OracleServicer_to_server(servicer, server)
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError:
        bound = 0
    if not bound:
        raise RunError(f"Cannot listen on {address}. Give another --chief HOST:PORT.")
    server.start()
    log.info("chief at %s, waiting for workers", address)
    try:
        while not oracle.is_over():
            time.sleep(0.5)
            oracle.release_silent()
    finally:
        server.stop(grace=2).wait()
