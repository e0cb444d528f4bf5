"""Where workers are started: nodes on which starts fail, nodes that join late, hosts of TPU slices. Ray is a stub."""

import itertools
from collections import Counter

import pytest
from ray.exceptions import ActorDiedError, RuntimeEnvSetupError

from easi3r_jax.apps.cluster import nodes, ray_cluster
from easi3r_jax.apps.cluster.flags import ClusterOptions
from easi3r_jax.apps.cluster.nodes import Node, Starts
from easi3r_jax.apps.cluster.ray_cluster import RayCluster
from easi3r_jax.apps.cluster.tasks import Task
from easi3r_jax.apps.cluster.tpu import own_slice
from easi3r_jax.core.errors import ConfigError, UserError


class Clock:
    """Stands still but for whoever sleeps."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Ray:
    """As much of the module `ray` as the driver uses. Every call has ended when it is looked at.

    Attributes:
      sizes: node -> its devices.
      started: nodes on which workers were started, with the time and their environment.
      bad: nodes on which no worker can start.
      ends: payloads that end their worker, each once.
    """

    def __init__(self, clock, resource="CPU", **sizes):
        self.clock, self.resource, self.sizes, self.labels = clock, resource, sizes, {}
        self.bad, self.ends, self.started = {}, set(), []
        self._turn = itertools.count()

    def nodes(self):
        return [
            {
                "NodeID": _hexadecimal(name),
                "NodeManagerAddress": f"address-of-{name}",
                "Alive": True,
                "Resources": {self.resource: float(size)} if size else {},
                "Labels": self.labels,
            }
            for name, size in self.sizes.items()
        ]

    def cluster_resources(self):
        return Counter({self.resource: sum(self.sizes.values())})

    def put(self, value):
        return value

    def wait(self, calls, **_):
        self.clock.sleep(0.1)
        return calls, []

    def get(self, call):
        return call()

    def kill(self, actor, **_):
        pass

    def shutdown(self):
        pass

    def remote(self, _):
        return self

    def options(self, *, scheduling_strategy=None, runtime_env, **_):
        names = [name for name, size in self.sizes.items() if size]
        chosen = names[next(self._turn) % len(names)]
        if scheduling_strategy:
            chosen = next(name for name in names if _hexadecimal(name) == scheduling_strategy.node_id)
        self.started.append((chosen, self.clock.now, runtime_env["env_vars"]))
        return _Class(self, chosen)


def _hexadecimal(name):
    """Ray's nodes have such names."""
    return name.encode().hex().ljust(56, "0")


class _Class:
    def __init__(self, ray, node):
        self._ray, self._node = ray, node

    def remote(self, *_):
        return _Actor(self._ray, self._node)


class _Actor:
    def __init__(self, ray, node):
        self._ray, self._node = ray, node
        self.ready, self.attempt = (_Method(call) for call in (self._ready, self._attempt))

    def _ready(self):
        if self._node in self._ray.bad:
            raise self._ray.bad[self._node]
        return self._node, 1

    def _attempt(self, payload):
        if payload in self._ray.ends:
            self._ray.ends.remove(payload)
            raise ActorDiedError
        return payload


class _Method:
    def __init__(self, call):
        self._call = call

    def remote(self, *arguments):
        return lambda: self._call(*arguments)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (ray_cluster, nodes):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def cluster(monkeypatch):
    def cluster(ray, **options):
        monkeypatch.setattr(ray_cluster, "connected", lambda _: ray)
        return RayCluster(ClusterOptions("auto", **{"devices_per_worker": 1, **options}))

    return cluster


def run(cluster, count):
    return list(cluster.run([Task(str(n), n) for n in range(count)], lambda shared: shared, None))


def test_a_bad_node_does_not_end_the_run(clock, cluster):
    """Its starts fail for as long as there is work; meanwhile the only good worker dies, three times."""
    ray = Ray(clock, good=1, bad=1)
    ray.bad["bad"] = ActorDiedError()
    ray.ends = {100, 200, 300}
    with cluster(ray) as distributed:
        ended = run(distributed, 400)
        assert sorted(end.value for end in ended) == list(range(400))
        assert [usage.name for usage in distributed.usage] == ["worker 1", "worker 2", "worker 3", "worker 4"]
        assert sum(usage.tasks for usage in distributed.usage) == 400
        assert "address-of-bad: a worker died" in distributed.doing()[-1]
    times = [now for node, now, _ in ray.started if node == "bad"]
    assert len(times) == len(nodes.PAUSES) + 1
    for pause, (first, second) in zip(nodes.PAUSES, itertools.pairwise(times), strict=True):
        assert second - first >= pause


def test_when_workers_start_nowhere_the_run_ends(clock, cluster):
    ray = Ray(clock, one=1, two=2)
    ray.bad = {"one": ActorDiedError(), "two": RuntimeEnvSetupError("no disk space")}
    with cluster(ray) as distributed:
        with pytest.raises(UserError, match=r"No worker can start: address-of-(one|two): a worker (died|could not)"):
            run(distributed, 9)
        assert distributed.usage == []
    assert Counter(node for node, *_ in ray.started)["one"] == len(nodes.PAUSES) + 1


def test_a_node_whose_starts_succeed_again_is_used(clock, cluster):
    ray = Ray(clock, only=1)
    ray.bad["only"] = ActorDiedError()
    started = ray.options

    def options(**given):
        if len(ray.started) == len(nodes.PAUSES):  # the last one that it has
            ray.bad.clear()
        return started(**given)

    ray.options = options
    with cluster(ray) as distributed:
        assert len(run(distributed, 3)) == 3 and distributed.doing() == []


def test_if_no_worker_was_ever_ready_on_many_nodes_it_is_not_the_nodes():
    starts, found = Starts(), [Node(str(n), f"10.0.0.{n}", 1) for n in range(20)]
    for node in found[:7]:
        starts.failed(node, "died")
        starts.check(found, idle=False)
    starts.failed(found[7], "could not start: no driver")
    with pytest.raises(UserError, match=r"No worker can start: 10\.0\.0\.7: a worker could not start: no driver"):
        starts.check(found, idle=False)
    starts.ready(found[0])
    starts.check(found, idle=False)
    starts.check(found[10:], idle=True)
    assert not str(starts)  # those nodes are gone


def test_workers_are_spread_over_nodes(clock, cluster):
    ray = Ray(clock, one=4, two=4, small=2)
    with cluster(ray, devices_per_worker=2, workers=2) as distributed:
        run(distributed, 20)
    assert Counter(node for node, *_ in ray.started) == {"one": 1, "two": 1}
    assert all(environment["OMP_NUM_THREADS"] == "2" for *_, environment in ray.started)


def test_nodes_may_join_late(clock, cluster, monkeypatch):
    """The head of a Kubernetes cluster has no cores; on Slurm and by hand, nodes join one after the other."""
    ray = Ray(clock, "GPU", head=0)
    slept = clock.sleep

    def sleep(seconds):
        slept(seconds)
        if clock.now > 1003:
            ray.sizes |= {"one": 8, "two": 8}

    clock.sleep = sleep
    with cluster(ray, workers=16) as distributed:
        assert str(distributed) == "3 nodes with 16 GPUs, 1 for each worker" and distributed.accelerator == "GPU"
    began = clock.now
    with pytest.raises(ConfigError, match="have 0, 8, 8 GPUs: too few for 17 workers with 1 each"):
        cluster(ray, workers=17)
    assert clock.now - began < 60


@pytest.mark.parametrize(
    ("topology", "chips", "bounds"), [("4x4", 4, "2,2,1"), ("2x2x4", 4, "2,2,1"), ("4x4", 2, "1,2,1")]
)
def test_a_worker_on_a_host_of_a_tpu_slice_does_not_wait_for_the_others(clock, cluster, topology, chips, bounds):
    ray = Ray(clock, "TPU", one=4, two=4)
    ray.labels = {"ray.io/tpu-topology": topology, "ray.io/tpu-slice-name": "slice"}
    with cluster(ray, devices_per_worker=chips) as distributed:
        run(distributed, 8)
    environments = [environment for *_, environment in ray.started]
    assert len(environments) == 8 // chips
    for environment in environments:
        assert environment["TPU_PROCESS_BOUNDS"] == "1,1,1" and environment["TPU_CHIPS_PER_PROCESS_BOUNDS"] == bounds
        assert environment["TPU_WORKER_ID"] == environment["CLOUD_TPU_TASK_ID"] == "0"
        assert environment["TPU_WORKER_HOSTNAMES"] == "localhost"
        assert environment["TPU_PROCESS_ADDRESSES"] == f"localhost:{environment['TPU_PROCESS_PORT']}"
    ports = [environment["TPU_PROCESS_PORT"] for environment in environments]
    assert len(set(ports)) == len(ports)  # several may be on one host


@pytest.mark.parametrize("topology", ["2x2", "2x2x1", ""])
def test_a_tpu_of_one_host_is_left_as_it_is(clock, cluster, topology):
    ray = Ray(clock, "TPU", one=4, two=4)
    ray.labels = {"ray.io/tpu-topology": topology} if topology else {}
    with cluster(ray, devices_per_worker=0) as distributed:
        run(distributed, 8)
    assert [environment for *_, environment in ray.started] == [{}, {}]


def test_chips_that_form_no_slice_are_refused(clock, cluster):
    ray = Ray(clock, "TPU", one=4)
    ray.labels = {"ray.io/tpu-topology": "4x4"}
    with pytest.raises(ConfigError, match="a host of a TPU slice of 4x4 chips: a worker can have 1, 2, 4 or 8"):
        cluster(ray, devices_per_worker=3)
    assert own_slice(Node("one", "10.0.0.1", 8, "4x8"), 8)["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "2,4,1"
