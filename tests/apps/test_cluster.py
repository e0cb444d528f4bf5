"""Distributing tasks: their order, and a real Ray cluster on which workers and nodes are killed."""

import builtins
import json
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from easi3r_jax.apps.cluster.flags import ClusterOptions
from easi3r_jax.apps.cluster.local import run_here
from easi3r_jax.apps.cluster.ray_cluster import RayCluster
from easi3r_jax.apps.cluster.simulation import simulated_seconds
from easi3r_jax.apps.cluster.tasks import Queue, Task, Tries
from easi3r_jax.apps.evaluate import records
from easi3r_jax.apps.evaluate.main import FLAGS
from easi3r_jax.core.errors import ConfigError
from tests.apps.conftest import ROOT
from tests.cluster_work import HANGING, POISON


def tasks_of(costs, shapes):
    return [Task(str(n), n, cost, shape) for n, (cost, shape) in enumerate(zip(costs, shapes, strict=True))]


def test_every_task_is_taken_once_and_longest_first():
    rng = np.random.default_rng(0)
    tasks = tasks_of(rng.permutation(50).astype(float), ["one"] * 50)
    queue = Queue(tasks)
    taken = [queue.take() for _ in range(50)]
    assert [task.cost for task in taken] == sorted((task.cost for task in tasks), reverse=True)
    assert queue.take() is None and len(queue) == 0


def test_a_worker_keeps_to_the_shapes_that_it_has_compiled():
    """Three shapes, two workers: each takes one that nobody has, stays with it, and helps in the end."""
    queue = Queue(tasks_of([9, 9, 9, 5, 5, 1], ["long", "long", "long", "short", "short", "rest"]))
    first = queue.take()
    assert first.shape == "long"
    second = queue.take((), {"long": 1})
    assert second.shape == "short"  # not "long", though that is longer: the first one has compiled it
    assert queue.take({"short"}, {"long": 1, "short": 1}).shape == "short"
    assert queue.take({"short"}, {"long": 1, "short": 1}).shape == "rest"
    assert queue.take({"short", "rest"}, {"long": 1, "short": 1, "rest": 1}).shape == "long"  # only that is left
    assert len(queue) == 1


def test_a_worker_with_little_left_helps_where_much_waits():
    """40 wait for the worker of "long", 6 for each of the two of "short"; then 10 for each of three: that can wait."""
    queue = Queue(tasks_of([10] * 4 + [3] * 4, ["long"] * 4 + ["short"] * 4))
    assert queue.take({"short"}, {"long": 1, "short": 2}).shape == "long"
    assert queue.take({"short"}, {"long": 3, "short": 2}).shape == "short"


def test_a_task_that_is_put_back_is_next():
    queue = Queue(tasks_of([3, 2, 1], ["a"] * 3))
    task = queue.take()
    queue.put_back(task)
    assert len(queue) == 3 and queue.take() is task


def test_losses_that_a_task_has_no_part_in_end_it_later():
    task, other = tasks_of([1, 1], "aa")
    tries = Tries(attempts=2)
    assert tries.lost(task, blameless=False)
    assert not tries.lost(task, blameless=False) and tries.begun(task) == 2
    assert [tries.lost(other, blameless=True) for _ in range(6)] == [True] * 5 + [False]
    assert tries.begun(other) == 6


@pytest.mark.parametrize("workers", [1, 3, 16])
def test_simulated_workers(workers):
    """Bounds of any order that lets no worker wait while tasks do: the share of the work, plus one task."""
    rng = np.random.default_rng(workers)
    tasks = tasks_of(rng.uniform(1, 9, 200), rng.choice(["a", "b", "c"], 200).tolist())
    seconds, work = simulated_seconds(tasks, workers, start=5, compilation=2)
    compiled = (work - sum(task.cost for task in tasks)) / 2
    assert compiled == pytest.approx(round(compiled)) and 3 <= round(compiled) <= 3 * workers
    assert 5 + work / workers <= seconds + 1e-9 <= 5 + work / workers + 9 + 2
    assert simulated_seconds(tasks_of([4] * 7, "a" * 7), 3)[0] == 12


def test_in_one_process_tasks_end_in_order():
    ended = list(run_here(tasks_of([1, 3, 2], "aaa"), lambda number: 10 * number))
    assert [(end.task.payload, end.value, end.attempts, end.worker) for end in ended] == [
        (1, 10, 1, ""),
        (2, 20, 1, ""),
        (0, 0, 1, ""),
    ]


def test_without_ray_one_line_says_how_to_get_it(monkeypatch):
    known = builtins.__import__

    def refuse(name, *arguments):
        if name == "ray":
            raise ImportError(name)
        return known(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0")
    with pytest.raises(ConfigError, match=r"pip install 'easi3r_jax\[cluster\]'"):
        RayCluster(ClusterOptions())


@pytest.mark.parametrize("flag", ["--workers=2", "--devices_per_worker=1", "--max_minutes=3", "--attempts=1"])
def test_flags_of_clusters_need_one(flag, capsys):
    from easi3r_jax.apps.evaluate.main import main

    assert FLAGS.execute(main, ["", "--dataset=synthetic", flag]) == 1
    assert f"error: {flag.split('=')[0]} applies to a cluster: add --cluster=local" in capsys.readouterr().err


def campaign(environment, *arguments):
    command = [sys.executable, "-m", "tests.cluster_campaign", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0 and lines, done.stderr[-3000:]
    return json.loads(lines[-1])


def check_campaign(found, count, *, disturbed):
    """Every task has exactly one end, the value of an undisturbed run, and only bad ones are given up."""
    ends = {payload: (value, error, attempts) for payload, value, error, attempts in found["ended"]}
    assert sorted(payload for payload, *_ in found["ended"]) == [HANGING, POISON, *range(count)]
    assert all(ends[n][:2] == (n * n, None) for n in range(count))
    for bad, says in ((POISON, "its worker died"), (HANGING, "its worker took longer than")):
        value, error, attempts = ends[bad]
        assert value is None and attempts == 3 and error.startswith("Begun 3 times; its worker ")
        assert disturbed or says in error  # one that hangs may be killed before its time is up
    begun = Counter(found["begun"])
    assert all(begun[n] >= 1 if disturbed else begun[n] == 1 for n in range(count))


def test_only_tasks_that_lose_their_workers_are_given_up(environment):
    found = campaign(environment, "--tasks=6", "--nodes=2", "--seconds=0.1", "--every=0", "--bad", "--max_seconds=2")
    check_campaign(found, 6, disturbed=False)


def test_tasks_survive_the_death_of_workers_and_nodes(environment):
    found = campaign(environment, "--tasks=12", "--nodes=2", "--seconds=0.3", "--every=3", "--bad", "--max_seconds=4")
    check_campaign(found, 12, disturbed=True)
    assert found["killed"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_campaign_of_killing(environment, seed):
    options = ("--tasks=200", "--nodes=3", "--seconds=0.2", "--every=3", "--bad", f"--seed={seed}")
    found = campaign(environment, *options)
    check_campaign(found, 200, disturbed=True)
    assert {"worker", "node"} <= set(found["killed"])


@pytest.mark.slow
def test_a_cluster_has_little_to_do_itself(environment):
    """10,000 tasks that do nothing, and tasks of a fixed duration: what the driver and Ray take."""
    found = campaign(environment, "--tasks=10000", "--nodes=2", "--seconds=0", "--every=0")
    assert len(found["ended"]) == 10_000 and found["seconds"] < 60
    found = campaign(environment, "--tasks=200", "--nodes=4", "--seconds=0.5", "--every=0")
    assert 200 * 0.5 / 4 / found["seconds"] >= 0.95


@pytest.mark.slow
def test_an_evaluation_on_a_cluster_resumes_and_equals_one_process(environment, tmp_path):
    """Its driver is killed after the first sequence; the same command completes the rest."""
    evaluate = [sys.executable, "-m", "experiments.evaluate", "--dataset=synthetic", "--num_sequences=4"]
    evaluate += ["--num_frames=4", "--size=48", "--iterations=20"]
    distributed = [*evaluate, f"--output={tmp_path / 'out'}", "--cluster=local", "--workers=2"]
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(distributed, cwd=ROOT, env=environment, stdout=log, stderr=log)
    until = time.monotonic() + 400
    while not records.read(tmp_path / "out"):
        assert driver.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    there = len(records.read(tmp_path / "out"))
    again = subprocess.run(distributed, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    assert f"4 sequences, {4 - there} to do" in again.stdout
    plain = [*evaluate, f"--output={tmp_path / 'plain'}"]
    subprocess.run(plain, cwd=ROOT, env=environment, capture_output=True, check=True)
    found, expected = (records.latest(records.read(tmp_path / name)) for name in ("out", "plain"))
    assert len(records.read(tmp_path / "out")) == 4 and found.keys() == expected.keys()
    for key, record in expected.items():
        for task, values in record.metrics.items():
            assert found[key].metrics[task] == pytest.approx(values, rel=1e-4, abs=1e-6), (key, task)
    report = (tmp_path / "out" / "report.md").read_text()
    assert "## Workers" in report and "| worker 1 |" in report
