"""The nodes of a Ray cluster: what they have, how much of it a worker gets, and where workers may be started."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from easi3r_jax.apps.cluster.flags import ClusterOptions
from easi3r_jax.core.errors import ConfigError, UserError

#: Seconds for which a node rests after its first failed start, its second, ...; after one more it is excluded.
PAUSES = (2.0, 15.0)
#: Nodes on which starts may fail before any worker has been ready: then it is not the nodes.
_FAILED_NODES = 8


@dataclasses.dataclass(frozen=True)
class Node:
    """A living node.

    Attributes:
      name: Ray's.
      address: in the network.
      size: its GPUs, TPU chips or processor cores.
      topology: of the TPU slice that it is a host of, e.g. "4x4"; "" if Ray does not know.
    """

    name: str
    address: str
    size: int
    topology: str = ""


def living(ray: Any, resource: str) -> list[Node]:
    """The nodes that are alive.

    Args:
      ray: the module, connected.
      resource: what their size is: "GPU", "TPU" or "CPU".
    """
    return [
        Node(
            found["NodeID"],
            found["NodeManagerAddress"],
            int(found["Resources"].get(resource, 0)),
            found.get("Labels", {}).get("ray.io/tpu-topology", ""),
        )
        for found in ray.nodes()
        if found["Alive"]
    ]


def devices_per_worker(sizes: Sequence[int], resource: str, options: ClusterOptions) -> int:
    """Devices of a worker: one GPU, the chips of a TPU host, or an equal share of the cores unless options say.

    Args:
      sizes: of the nodes.
      resource: what they count: "GPU", "TPU" or "CPU".
      options: of the distribution.

    Raises:
      ConfigError: no node has so many, or the cluster does not hold so many workers.
    """
    largest = max(sizes, default=0)
    wanted = options.devices_per_worker
    if not wanted:
        wanted = {"GPU": 1, "TPU": largest, "CPU": min(4, largest)}[resource]
        if resource == "CPU" and options.workers:
            shares = range(largest, 0, -1)
            wanted = next((n for n in shares if sum(size // n for size in sizes) >= options.workers), largest)
    if not 0 < wanted <= largest or sum(size // wanted for size in sizes) < options.workers:
        raise ConfigError(
            f"The cluster's nodes have {', '.join(map(str, sizes))} {resource}s: too few for "
            f"{options.workers or 'any'} workers with {wanted} each. Use fewer --workers or --devices_per_worker."
        )
    return wanted


class Starts:
    """Where workers may be started.

    A node on which a start fails rests, and after a few failures in a row it is excluded: one bad node, be it a full
    disk or a broken driver, takes no work from the others and does not end the run. A worker that becomes ready clears
    its node. A node that leaves and joins again has another name, so a clean record.
    """

    def __init__(self):
        self._failures: dict[str, int] = {}
        self._rests_until: dict[str, float] = {}
        self._reasons: dict[str, str] = {}
        self._was_ready = False

    def failed(self, node: Node, reason: str) -> None:
        """A start on the node has failed."""
        count = self._failures.get(node.name, 0) + 1
        self._failures[node.name] = count
        self._reasons[node.name] = f"{node.address}: a worker {reason}"
        if count <= len(PAUSES):
            self._rests_until[node.name] = time.monotonic() + PAUSES[count - 1]

    def ready(self, node: Node) -> None:
        """A worker on the node is ready."""
        self._was_ready = True
        self._forget(node.name)

    def allows(self, node: Node) -> bool:
        """Whether a worker may be started on the node now."""
        return not self._excluded(node.name) and time.monotonic() >= self._rests_until.get(node.name, 0.0)

    def failures(self, name: str) -> int:
        """Failed starts in a row on the node of this name."""
        return self._failures.get(name, 0)

    def check(self, nodes: Sequence[Node], *, idle: bool) -> None:
        """Whether it is any use to wait. Forgets nodes that are gone.

        Args:
          nodes: all that are large enough for a worker.
          idle: there is no worker, and none is starting.

        Raises:
          UserError: every node is excluded, or no worker was ever ready on several nodes.
        """
        for name in self._failures.keys() - {node.name for node in nodes}:
            self._forget(name)
        hopeless = idle and bool(nodes) and all(self._excluded(node.name) for node in nodes)
        if hopeless or (not self._was_ready and len(self._failures) >= _FAILED_NODES):
            raise UserError(f"No worker can start: {list(self._reasons.values())[-1]}")

    def __str__(self) -> str:
        """Nodes with failed starts, in words; "" if there are none."""
        words = []
        for name, count in self._failures.items():
            state = "no more workers there" if self._excluded(name) else f"{count} of {len(PAUSES) + 1} starts failed"
            words.append(f"{self._reasons[name]} ({state})")
        return "; ".join(words)

    def _forget(self, name: str) -> None:
        for known in (self._failures, self._rests_until, self._reasons):
            known.pop(name, None)

    def _excluded(self, name: str) -> bool:
        return self._failures.get(name, 0) > len(PAUSES)
