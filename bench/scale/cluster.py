"""A Ray cluster on this machine with Demi in it, for tests and measurements. Needs the extra `ray`."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from demi.ray import Args, application
from demi.server.ray.options import ENVIRONMENT
from demi.server.ray.replica import Replica

HTTP_PORT, GRPC_PORT = 8000, 9000
MEMORY = 100 * 2**20
"""Of Ray's object store, in bytes; Demi does not use it."""
SHORT_DRAIN = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5"}
"""Half a minute for deregistration is meant for load balancers outside, which a test does not have."""
ATTEMPTS = 4
"""Starts of Ray: it gives its own processes 30 seconds, which a busy machine may exceed."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "180",  # this and the next: on a busy machine
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "180",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}


@contextlib.contextmanager
def ray_cluster(variables: Mapping[str, str] = ENVIRONMENT, cpus: int = 16) -> Iterator[None]:
    """Run Ray with Serve, HTTP and gRPC, with these variables, for the length of a block."""
    _set(variables)

    with _folder() as folder, _serve(num_cpus=cpus, object_store_memory=MEMORY, _temp_dir=folder):
        yield


@contextlib.contextmanager
def ray_nodes(count: int, variables: Mapping[str, str] = ENVIRONMENT) -> Iterator[Nodes]:
    """Run a head that only routes, and `count` nodes with room for one replica each, for the length of a block."""
    _set(variables)

    from ray.cluster_utils import Cluster

    Path("/tmp/ray").mkdir(exist_ok=True)  # Ray notes the address there, wherever its own folder is
    with _folder() as folder:
        head = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False, "temp_dir": folder}
        nodes = Nodes(Cluster(initialize_head=True, head_node_args={**head, "object_store_memory": MEMORY}))
        for _ in range(count):
            nodes.add()
        try:
            with _serve(address=nodes.cluster.address):
                yield nodes
        finally:
            nodes.cluster.shutdown()


class Nodes:
    """Nodes of a cluster on this machine, each with an address of its own."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self._numbers = itertools.count(2)
        self._nodes: list[Any] = []

    def add(self) -> None:
        """Start a node, with CPUs for one replica of `deploy`."""
        address = f"127.0.0.{next(self._numbers)}"
        node = self.cluster.add_node(num_cpus=1, node_ip_address=address, resources={"place": 1})
        self._nodes.append(node)

    def replace_one(self) -> None:
        """End the oldest node with SIGKILL, and start another one."""
        self.cluster.remove_node(self._nodes.pop(0), allow_graceful=False)
        self.add()


def _set(variables: Mapping[str, str]) -> None:
    """Set the variables that Ray's processes inherit; Ray must not be imported before."""
    os.environ.update({**QUIET, **SHORT_DRAIN, **variables, "PYTHONPATH": os.getcwd()})


def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for Ray, with a path that is short enough for its sockets."""
    return tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True)


@contextlib.contextmanager
def _serve(**options: Any) -> Iterator[None]:
    """Connect to Ray, starting it unless there is an address, and run Serve on its head."""
    import ray
    from ray import serve

    log = bool(os.environ.get("DEMI_BENCH_LOG"))
    quiet = {"include_dashboard": False} if "address" not in options else {}
    for attempt in range(ATTEMPTS):
        try:
            ray.init(namespace="serve", log_to_driver=log, logging_level="ERROR", **quiet, **options)
            break
        except Exception as error:  # Ray's own class
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt == ATTEMPTS - 1:
                raise
    try:
        grpc = {"port": GRPC_PORT, "grpc_servicer_functions": ["demi.ray.add_servicer"]}
        serve.start(proxy_location="HeadOnly", http_options={"port": HTTP_PORT}, grpc_options=grpc)
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def deploy(models: Path, name: str = "default", prefix: str = "/", replica: type = Replica, **args: Any) -> None:
    """Deploy Demi, or update it, and return once every replica is ready. `args` are those of `demi.ray.Args`."""
    from ray import serve

    given = {"models": str(models), "num_cpus": 0.1, "allow_without_key": True, "threads": 1, **args}
    serve.run(application(Args.model_validate(given), replica), name=name, route_prefix=prefix)


def deploy_in_background(models: Path, **args: Any) -> threading.Thread:
    """Start `deploy` in a thread, which the caller joins."""
    thread = threading.Thread(target=deploy, args=(models,), kwargs=args)
    thread.start()
    return thread


def replicas(name: str = "default", deployment: str = "Demi") -> list[int]:
    """Return the process ids of an application's replicas on this machine."""
    return _processes(f"ray::ServeReplica:{name}:{deployment}")


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill(pid: int) -> None:
    """End a process as a crash or the kernel would."""
    os.kill(pid, signal.SIGKILL)


def wait_for_replicas(count: int, name: str = "default", timeout_s: float = 60.0) -> None:
    """Wait until an application has so many replicas, and all of them serve."""
    from ray import serve

    stop = time.monotonic() + timeout_s
    while time.monotonic() < stop:
        deployment = serve.status().applications[name].deployments["Demi"]
        if deployment.replica_states == {"RUNNING": count} and len(replicas(name)) == count:
            return
        time.sleep(0.1)
    raise TimeoutError(f"{name} does not have {count} replicas after {timeout_s:g} s: {deployment}")


def _processes(title: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().decode(errors="replace").startswith(title):
                found.append(int(folder.name))
    return sorted(found)
