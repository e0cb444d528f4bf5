"""One run on several processes: their messages, and a real run of two processes, one of which is killed."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures

import numpy as np
import pytest

from easi3r_jax.apps import cli, hosts
from easi3r_jax.apps.evaluate import records
from easi3r_jax.apps.evaluate.gather import Gathering, claimed
from easi3r_jax.apps.evaluate.records import Record
from easi3r_jax.apps.evaluate.schedule import Part, all_jobs, shard_of
from easi3r_jax.apps.host_flags import HostFlags
from easi3r_jax.apps.hosts import HostLostError, Hosts
from easi3r_jax.apps.run_folder import locked
from easi3r_jax.core.errors import OutputError, UserError
from easi3r_jax.evaluation.datasets import TestSequence, TestSet, Truth
from easi3r_jax.evaluation.metrics import DepthOptions
from tests.apps.conftest import ROOT
from tests.flags import on_devices


class Table:
    """Stands in for the store of `jax.distributed`."""

    def __init__(self):
        self.texts, self._lock = {}, threading.Lock()

    def put(self, name, text, *, overwrite=False):
        with self._lock:
            if name in self.texts and not overwrite:
                raise UserError("twice")
            self.texts[name] = text

    def get(self, name):
        return self.texts.get(name)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(hosts, "_POLL_SECONDS", 0.01)


def group(count, timeout=60.0):
    table = Table()
    return [Hosts(index, count, table, timeout) for index in range(count)], table


def together(*calls):
    """Runs the calls at once, each in a thread; their results or exceptions."""
    with futures.ThreadPoolExecutor(len(calls)) as pool:
        running = [pool.submit(call) for call in calls]
        return [future.exception(60) or future.result() for future in running]


# --- messages --------------------------------------------------------------------------------------------------------


def test_a_message_of_any_length_is_received_by_all():
    (first, second, third), table = group(3)
    message = {"text": "é" * 1_000_000, "numbers": [1, 2.5, None]}
    received = together(
        lambda: second.receive("m", 0),
        lambda: third.receive("m", 0),
        lambda: time.sleep(0.05) or first.publish("m", message),
    )
    assert received[:2] == [message, message]
    assert max(map(len, table.texts.values())) <= 1 << 18  # gRPC accepts 4 MB
    with pytest.raises(UserError, match="twice"):
        Hosts(0, 3, table).publish("m", 1)


def test_a_process_that_stops_says_why():
    (first, second), _ = group(2)

    def fail():
        with second.participating():
            raise UserError("The disk\n is full.")

    def listen():
        with first.participating():
            first.receive("m", 1)

    failed, lost = together(fail, listen)
    assert str(failed) == "The disk\n is full."
    assert isinstance(lost, HostLostError) and str(lost) == "Process 1 has stopped: The disk is full."


def test_a_silent_process_is_considered_dead():
    (first, second), _ = group(2, timeout=1.0)
    began = time.monotonic()
    with pytest.raises(HostLostError, match="Process 1 is silent"):
        first.receive("m", 1)
    assert 1.0 < time.monotonic() - began < 30

    def live():
        with second.participating():
            time.sleep(2.0)  # busy for twice the timeout
            second.publish("n", "alive")

    assert together(live, lambda: Hosts(0, 2, second._store, 1.0).receive("n", 1))[1] == "alive"


def test_process_0_leaves_last():
    members, _ = group(3)
    order = []

    def member(host, seconds):
        with host.participating():
            time.sleep(seconds)
            order.append(host.index)
        order.append(f"{host.index} left")

    together(*(lambda h=h, s=s: member(h, s) for h, s in zip(members, (0, 0.3, 0.1), strict=True)))
    assert order[0] == 0 and order[-1] == "0 left"


def test_when_process_0_stops_the_others_finish_and_learn_why(capsys):
    (first, second), _ = group(2)

    def fail():
        with first.participating():
            raise UserError("The disk is full.")

    def work():
        with second.participating():
            time.sleep(0.5)
            second.receive("wanted", 0)

    failed, told = together(fail, work)
    assert str(failed) == "The disk is full." and str(told) == "Process 0 has stopped: The disk is full."
    assert (
        "[0] has stopped, waiting for the others to finish their shards: The disk is full." in capsys.readouterr().out
    )


# --- distribution and gathering --------------------------------------------------------------------------------------

LENGTHS = (90, 5, 40, 41, 3, 88, 17, 60)


@pytest.fixture
def jobs():
    sequences = [TestSequence(f"s{n}", (), np.arange(float(n)), Truth(), n) for n in LENGTHS]
    test_set = TestSet("set", "Set", ("depth",), lambda root: [], "", "", DepthOptions())
    return all_jobs([Part.of(test_set, sequences, 0, {})], [0])


def record_of(job, **options):
    dataset, sequence, seed, config = job.key
    values = {"metrics": {"depth": {"abs_rel": job.num_frames / 100}}, "error": None, "seconds": 1.0, "ended": 1.0}
    values |= {"peak_memory_bytes": {"host": 1}, "hardware": "x", "code": "y", "num_frames": job.num_frames}
    return Record(dataset=dataset, sequence=sequence, seed=seed, config=config, **(values | options))


def write(folder, index, *found):
    folder.mkdir(exist_ok=True)
    records.append(folder / f"results.{index:03d}.jsonl", *found)


def is_done(job, known):
    return job.key in known and known[job.key].error is None


def gatherings(members, jobs, folders):
    return [Gathering(host, jobs, folder, is_done) for host, folder in zip(members, folders, strict=True)]


@pytest.mark.parametrize("own_disks", [False, True])
def test_only_missing_jobs_are_distributed_and_process_0_gets_all_records(tmp_path, jobs, own_disks):
    """With a shared folder or not; also with records of an earlier run of other processes, failures included."""
    folders = [tmp_path / str(n) if own_disks else tmp_path / "all" for n in range(3)]
    write(folders[0], 0, record_of(jobs[0]))
    write(folders[1], 5, record_of(jobs[1]), record_of(jobs[2], error="broken", metrics={}))
    write(folders[2], 1, record_of(jobs[0], ended=0.5, error="older"))
    members, table = group(3)

    def process(gathering, host, folder):
        gathering.agree()
        left, shard = gathering.divide()
        for job in shard:
            error = "broken again" if job is jobs[2] else None
            write(folder, host.index, record_of(job, ended=2.0, error=error))
        return left, shard, gathering.collect("after") if host.index == 0 else gathering.offer("after")

    every = gatherings(members, jobs, folders)
    found = together(*(lambda a=a: process(*a) for a in zip(every, members, folders, strict=True)))
    assert all(left == jobs[2:] for left, _, _ in found)
    assert [shard for _, shard, _ in found] == [shard_of(jobs[2:], n, 3) for n in range(3)]
    assert found[0][2] == ({n for n in range(len(jobs)) if n != 2}, [])

    complete = records.latest(records.read(folders[0]))
    assert set(complete) == {job.key for job in jobs}
    assert [complete[job.key].error for job in jobs[:4]] == [None, None, "broken again", None]
    assert complete[jobs[0].key].ended == 1.0
    sent = [json.loads(table.texts[f"{n}/after/records/0"]) for n in (1, 2)]
    assert all(sent) if own_disks else not any(sent)


def test_a_dead_host_loses_only_its_unfinished_jobs(tmp_path, jobs):
    members, _ = group(3, timeout=1.0)
    folders = [tmp_path / str(n) for n in range(3)]
    for index, folder in enumerate(folders):
        write(folder, index, record_of(jobs[index]))
    first, _, third = gatherings(members, jobs, folders)

    def live():
        with members[2].participating():
            third.offer("after")

    def gather():
        with members[0].participating():  # or it would itself be considered dead while it waits for the dead one
            return first.collect("after")

    (done, lost), _ = together(gather, live)
    assert done == {0, 2} and [str(error) for error in lost] == ["Process 1 is silent: it or its host has died."]
    assert set(records.latest(records.read(folders[0]))) == {jobs[0].key, jobs[2].key}


def test_processes_with_different_plans_do_nothing(tmp_path, jobs):
    members, _ = group(2)
    every = [Gathering(members[0], jobs, tmp_path, is_done), Gathering(members[1], jobs[:-1], tmp_path, is_done)]
    for error in together(*(gathering.agree for gathering in every)):
        assert isinstance(error, UserError) and "Processes 0 and 1 have different plans" in str(error)


def test_records_that_were_not_requested_are_not_written(tmp_path, jobs):
    (first, second), _ = group(2)
    write(tmp_path / "0", 0)
    second.publish("after/offer", [[0, 1.0, True]])
    requested = record_of(jobs[0])
    stranger = records.line(requested).replace('"s90"', '"another"')
    second.publish("after/records", [stranger, "not a line", records.line(requested)])
    Gathering(first, jobs, tmp_path / "0", is_done).collect("after")
    assert records.read(tmp_path / "0") == [requested]


# --- folders --------------------------------------------------------------------------------------------------------


def claim(output, host):
    with claimed(output, host):
        return sorted(path.name for path in output.glob("run.*.lock"))


def test_a_folder_has_one_run_whatever_its_processes(tmp_path):
    """A process of a larger run that is still alive keeps another run out; the other processes of that run end too."""
    output = tmp_path / "out"
    with locked(output, busy="", name="run.002.lock"):
        (first, second), _ = group(2)

        def member(host):
            with host.participating():
                claim(output, host)

        refused, told = together(lambda: member(first), lambda: member(second))
    assert isinstance(refused, OutputError) and "in use: another evaluation writes there" in str(refused)
    assert isinstance(told, HostLostError) and str(told) == f"Process 0 has stopped: {refused}"
    assert claim(output, Hosts()) == ["run.000.lock", "run.002.lock"]


def test_a_folder_of_another_process_is_reused(tmp_path):
    """With a disk each, hosts may have other numbers the next time."""
    (first, second), _ = group(2)
    both = together(lambda: claim(tmp_path / "a", first), lambda: claim(tmp_path / "b", second))
    assert both == [["run.000.lock"], ["run.001.lock"]]
    assert claim(tmp_path / "b", Hosts()) == ["run.000.lock", "run.001.lock"]


# --- flags ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(capsys):
    """`start("--process_id=1")` runs a program that only joins: exit code, stdout and stderr."""
    flags = cli.Flags("A program.")
    host_flags = HostFlags(flags)

    def main():
        with host_flags.joined() as joined:
            print(joined.index, joined.count, joined.prefix)

    return lambda *arguments: (flags.execute(main, ["", *arguments]), *capsys.readouterr())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--process_id=1",), "belong together"),
        (("--coordinator=a:1", "--num_processes=2"), "belong together"),
        (("--coordinator=a:1", "--num_processes=2", "--process_id=2"), "numbered from 0 to"),
        (("--coordinator=a:1", "--num_processes=0", "--process_id=0"), "numbered from 0 to"),
        (("--coordinator=a", "--num_processes=2", "--process_id=0"), "--coordinator=a is not an address: HOST:PORT"),
        (("--coordinator=a:70000", "--num_processes=2", "--process_id=0"), "not an address"),
        (("--coordinator=http://a:1", "--num_processes=2", "--process_id=0"), "not an address"),
    ],
)
def test_inconsistent_flags_are_one_line(start, arguments, says):
    code, out, errors = start(*arguments)
    assert code == 1 and not out and len(errors.splitlines()) == 1 and says in errors


def test_a_port_in_use_is_one_line(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, errors = start(f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--process_id=0")
    assert code == 1 and len(errors.splitlines()) == 1 and "another program uses that port" in errors


def test_without_flags_a_process_is_alone(start):
    assert start() == (0, "0 1 \n", "")


# --- real processes --------------------------------------------------------------------------------------------------

SEQUENCES = 6
EVALUATE = ("-m", "experiments.evaluate", "--dataset=synthetic", f"--num_sequences={SEQUENCES}", "--num_frames=3")
EVALUATE += ("--graph=complete", "--kmeans_restarts=1", "--iterations=3")
#: A program that only joins.
JOIN = """
from easi3r_jax.core import interrupt
from easi3r_jax.apps import cli, host_flags
interrupt.install()
flags = cli.Flags("")
hosts = host_flags.HostFlags(flags)
def main():
    with hosts.joined():
        print("together")
flags.run(main)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def launch(environment, tmp_path):
    """`launch("name", *arguments)` starts Python in a process; its output goes to files `name.out`, `name.err`.

    Each has two devices, which shard its sequences. What is compiled is kept however quickly it was, as four processes
    need the same.
    """
    started = []
    kept = {k: v for k, v in environment.items() if not k.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "TPU_"))}
    kept["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    kept["XLA_FLAGS"] = on_devices(2)["XLA_FLAGS"]

    def launch(name, *arguments):
        with (tmp_path / f"{name}.out").open("wb") as out, (tmp_path / f"{name}.err").open("wb") as errors:
            command = [sys.executable, *arguments]
            process = subprocess.Popen(command, cwd=ROOT, env=kept, stdout=out, stderr=errors)
        started.append(process)
        return process

    yield launch
    for process in started:
        process.kill()
        process.wait()


def last_line(path: pathlib.Path) -> str:
    return path.read_text().splitlines()[-1]


def test_processes_that_do_not_find_each_other_end_with_one_line(launch, tmp_path):
    def join(name, *arguments):
        return launch(name, "-c", JOIN, *arguments)

    def elsewhere(index):
        return (f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", f"--process_id={index}")

    waiting = join("waiting", *elsewhere(1))
    alone = join("alone", *elsewhere(0), "--start_timeout=2")
    lost = join("lost", *elsewhere(1), "--start_timeout=2")
    unknown = join("unknown", "--distributed")
    assert [process.wait(120) for process in (alone, lost, unknown)] == [1, 1, 1]
    assert last_line(tmp_path / "alone.err").startswith("error: Not all processes connected within 2 s")
    (error,) = (tmp_path / "lost.err").read_text().splitlines()
    assert "Process 0 could not be reached at 127.0.0.1" in error
    assert "JAX does not detect Slurm, a TPU pod, Kubernetes or Open MPI here" in last_line(tmp_path / "unknown.err")
    waiting.send_signal(signal.SIGTERM)  # while JAX is looking for process 0
    assert waiting.wait(10) == 128 + signal.SIGTERM


@pytest.mark.slow
def test_a_run_on_two_processes_survives_one_of_them(launch, tmp_path):
    """Process 1 is killed after its first sequence; one process completes the rest, and all metrics are the same."""
    output = tmp_path / "out"
    flags = (f"--output={output}", f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2")
    limits = ("--start_timeout=120", "--host_timeout=15")
    first, second = (launch(f"process_{n}", *EVALUATE, *flags, *limits, f"--process_id={n}") for n in (0, 1))
    finished = output / "results.001.jsonl"
    until = time.monotonic() + 200
    while not (finished.exists() and finished.read_bytes().endswith(b"\n")):
        assert second.poll() is None and time.monotonic() < until, (tmp_path / "process_1.err").read_text()
        time.sleep(0.02)
    os.kill(second.pid, signal.SIGKILL)
    assert first.wait(200) == 1
    assert "Process 1 is silent: it or its host has died. Finished sequences are saved" in last_line(
        tmp_path / "process_0.err"
    )
    there = records.read(output)
    assert SEQUENCES / 2 < len(there) < SEQUENCES and not any(record.error for record in there)
    printed = (tmp_path / "process_0.out").read_text()
    assert f"INCOMPLETE: synthetic (masks) has {len(there)} of {SEQUENCES} sequences" in printed
    assert f"[0] {SEQUENCES} sequences, {SEQUENCES} to do, {SEQUENCES // 2} of them here" in printed
    assert "masks" not in (tmp_path / "process_1.out").read_text()  # only process 0 prints the tables

    again = launch("again", *EVALUATE, f"--output={output}")
    plain = launch("plain", *EVALUATE, f"--output={tmp_path / 'plain'}")
    assert (again.wait(300), plain.wait(300)) == (0, 0)
    printed = (tmp_path / "again.out").read_text()
    assert f"{SEQUENCES} sequences, {SEQUENCES - len(there)} to do" in printed and "INCOMPLETE" not in printed
    found, expected = (records.latest(records.read(folder)) for folder in (output, tmp_path / "plain"))
    assert len(records.read(output)) == SEQUENCES and found.keys() == expected.keys()
    for key, record in expected.items():
        for task, values in record.metrics.items():
            assert found[key].metrics[task] == pytest.approx(values, rel=1e-5, abs=1e-7), (key, task)
