"""Workers on the hosts of a TPU slice.

A slice of several hosts is one TPU to its runtime: a process on one host waits for processes on all the others. A
worker is to have its own host alone, so it gets the variables by which the runtime takes its chips for a slice of their
own. They are those that JAX's own tests of several processes on a host set, and those of
https://github.com/jax-ml/jax/issues/14977; not tried on hardware.
"""

from __future__ import annotations

import math
import re

from easi3r_jax.apps.cluster.nodes import Node
from easi3r_jax.core.errors import ConfigError

#: How so many chips of a host lie.
_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
#: Of the runtime's first process on a host. Those of other workers follow.
_PORT = 8476


def own_slice(node: Node, chips: int, number: int = 0) -> dict[str, str]:
    """Variables of a worker's environment; none on a slice of one host, or if Ray does not know the slice.

    Args:
      node: where it runs.
      chips: that it has.
      number: of the worker: those of one host use different ports.

    Raises:
      ConfigError: so many chips do not form a slice.
    """
    total = math.prod(map(int, re.findall(r"\d+", node.topology)))  # 1 if Ray does not know
    if total <= node.size:
        return {}
    if chips not in _BOUNDS:
        raise ConfigError(
            f"{node.address} is a host of a TPU slice of {node.topology} chips: a worker can have 1, 2, 4 or 8 of the "
            f"host's chips, not {chips}. Change --devices_per_worker."
        )
    port = str(_PORT + number % 1000)
    return {
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": _BOUNDS[chips],
        "TPU_PROCESS_ADDRESSES": f"localhost:{port}",
        "TPU_PROCESS_PORT": port,
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "CLOUD_TPU_TASK_ID": "0",
    }
