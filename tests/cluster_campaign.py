"""Tasks on a real Ray cluster of several nodes on this machine, whose workers and nodes are killed meanwhile.

    python -m tests.cluster_campaign --tasks=200 --nodes=3 --seconds=0.2 --every=3 --seed=0

Prints a line of JSON: what became of every task, and what was killed.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import signal
import tempfile
import time

from easi3r_jax.apps.cluster.flags import ClusterOptions
from easi3r_jax.apps.cluster.ray_cluster import RayCluster
from easi3r_jax.apps.cluster.tasks import Task
from tests.cluster_work import HANGING, POISON, make


class Killer:
    """Kills a worker or a node now and then, and replaces the node. Called by the driver about once a second.

    Args:
      cluster: Ray's.
      nodes: of it, without the head.
      folder: where workers leave their processes' numbers.
      every: mean seconds between two kills; 0: none.
      seed: of what is killed, and when.
    """

    def __init__(self, cluster, nodes, folder, every, seed):
        self.killed = []
        self._cluster, self._nodes, self._folder, self._every = cluster, nodes, folder, every
        self._random, self._next = random.Random(seed), float("inf")
        if every:
            self._plan()

    def __call__(self):
        workers = [int(path.name) for path in self._folder.iterdir() if path.name.isdigit()]
        alive = [number for number in workers if os.path.exists(f"/proc/{number}")]
        if time.monotonic() < self._next:
            return
        self._plan()
        if not alive:  # a kill that is made up for later would hit the first worker that appears, and always its task
            return
        if self._random.random() < 0.7:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._random.choice(alive), signal.SIGKILL)
                self.killed.append("worker")
        else:
            self._cluster.remove_node(self._nodes.pop(0), allow_graceful=False)
            self._nodes.append(self._cluster.add_node(num_cpus=1))
            self.killed.append("node")

    def _plan(self):
        self._next = time.monotonic() + self._random.expovariate(1 / self._every)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.2, help="of a task")
    parser.add_argument("--every", type=float, default=3.0, help="mean seconds between two kills; 0: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bad", action="store_true", help="with a task that kills its worker, and one that hangs")
    parser.add_argument("--max_seconds", type=float, default=6.0)
    options = parser.parse_args()
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        nodes = [cluster.add_node(num_cpus=1) for _ in range(options.nodes)]
        killer = Killer(cluster, nodes, pathlib.Path(folder), options.every, options.seed)
        numbers = [*range(options.tasks), *((POISON, HANGING) if options.bad else ())]
        tasks = [Task(f"task {number}", number, cost=1.0, shape=number % 3) for number in numbers]
        distributed = ClusterOptions(
            cluster.address, devices_per_worker=1, max_minutes=options.max_seconds / 60, attempts=3
        )
        ended, began = [], None
        with RayCluster(distributed) as ray_cluster:
            for end in ray_cluster.run(tasks, make, (folder, options.seconds), killer):
                began = began or time.monotonic() - end.seconds
                ended.append((end.task.payload, end.value, end.error, end.attempts))
            seconds = time.monotonic() - (began or 0.0)
            usage = [(usage.name, usage.tasks) for usage in ray_cluster.usage]
        begun = [int(line) for line in pathlib.Path(folder, "begun").read_text(encoding="utf-8").split()]
        cluster.shutdown()
    print(json.dumps({"ended": ended, "seconds": seconds, "killed": killer.killed, "usage": usage, "begun": begun}))


if __name__ == "__main__":
    main()
