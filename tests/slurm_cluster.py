"""A Slurm cluster on one machine: nodes with addresses, processes and Ray folders of their own (Linux, root).

Every node is a network namespace on a bridge, in which `slurmd` is process 1 of a namespace of processes: ending that
is the loss of the node, with everything that ran on it.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

PROGRAMS = ("slurmctld", "slurmd", "munged", "ip", "unshare")
_BRIDGE, _NETWORK = "e3r-slurm", "10.213.7"
_CONFIG = """
ClusterName=test
SlurmctldHost={host}({network}.1)
SlurmctldPort=26817
SlurmdPort=26818
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n.spool
SlurmdLogFile={folder}/%n.log
SlurmctldLogFile={folder}/controller.log
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmdParameters=config_overrides
SlurmdTimeout=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=1
MpiDefault=none
MailProg=/bin/true
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_NODE = """
hostname {name}
mount --bind {folder}/{name}.hosts /etc/hosts
mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray
exec slurmd -D -N {name} -f {folder}/slurm.conf
"""


def missing() -> list[str]:
    """What this machine lacks."""
    programs = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    return programs if os.geteuid() == 0 else [*programs, "root"]


class Slurm:
    """Commands of a running cluster.

    Attributes:
      nodes: names of the nodes.
      environment: in which Slurm's commands find it.
    """

    def __init__(self, folder: pathlib.Path, nodes: list[str]):
        self._folder, self.nodes = folder, nodes
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: str) -> str:
        """What a command prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """Of a job: RUNNING, COMPLETED, ..."""
        words = self.run("scontrol", "show", "job", job, "--oneliner").split()
        return next(word.removeprefix("JobState=") for word in words if word.startswith("JobState="))

    def lose(self, node: str) -> None:
        """Ends everything on a node at once."""
        daemon = self._daemons.pop(node)
        daemon.kill()  # of `unshare`: with --kill-child, the whole namespace
        daemon.wait()

    def start(self) -> None:
        """Starts the controller and the nodes."""
        folder = self._folder
        for number, name in enumerate(self.nodes):
            inside, outside, address = f"{name}-in", f"{name}-out", f"{_NETWORK}.{11 + number}/24"
            for command in (
                f"ip netns add {name}",
                f"ip link add {outside} type veth peer name {inside}",
                f"ip link set {inside} netns {name}",
                f"ip link set {outside} master {_BRIDGE} up",
                f"ip -n {name} link set lo up",
                f"ip -n {name} addr add {address} dev {inside}",
                f"ip -n {name} link set {inside} up",
                f"ip -n {name} route add default via {_NETWORK}.1",
            ):
                self.run(*command.split())
        self._daemon("munged", "munged", "--foreground", "--force", *(f"--{k}={folder}/munge.{v}" for k, v in _MUNGE))
        wait_for(lambda: (folder / "munge.socket").exists(), "munge's socket")
        self._daemon("controller", "slurmctld", "-D", "-f", str(folder / "slurm.conf"))
        apart = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
        for name in self.nodes:
            script = _NODE.format(name=name, folder=folder)
            self._daemon(name, "ip", "netns", "exec", name, *apart, "bash", "-ec", script)
        wait_for(lambda: self.run("sinfo", "-h", "-N", "-o", "%t").split() == ["idle"] * len(self.nodes), "idle nodes")

    def stop(self) -> None:
        """Ends all, and removes the network."""
        for process in reversed(self._daemons.values()):
            process.kill()
            process.wait()
        for name in self.nodes:
            subprocess.run(["ip", "netns", "delete", name], check=False)

    def _daemon(self, name: str, *command: str) -> None:
        with (self._folder / f"{name}.out").open("wb") as file:
            self._daemons[name] = subprocess.Popen(command, env=self.environment, stdout=file, stderr=file)


_MUNGE = (("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"))


@contextlib.contextmanager
def slurm_cluster(folder: pathlib.Path, nodes: int) -> Iterator[Slurm]:
    """A cluster of so many nodes of one processor each; its files are in the folder."""
    host = socket.gethostname().split(".")[0]
    names = [f"e3r{number}" for number in range(1, nodes + 1)]
    addresses = [f"{_NETWORK}.{10 + number}" for number in range(1, nodes + 1)]
    lines = [f"NodeName={n} NodeAddr={a} CPUs=1 State=UNKNOWN" for n, a in zip(names, addresses, strict=True)]
    for name in ("state", *(f"{name}.spool" for name in names)):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(
        _CONFIG.format(folder=folder, host=host, network=_NETWORK, nodes="\n".join(lines))
    )
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # used by no plugin above, but read
    known = zip(["127.0.0.1", f"{_NETWORK}.1", *addresses], ["localhost", host, *names], strict=True)
    lines = [f"{address} {name}\n" for address, name in known]
    for name in names:  # as Debian has it: a host's own name is the loopback's
        own = [line if line.split()[1] != name else f"127.0.1.1 {name}\n" for line in lines]
        (folder / f"{name}.hosts").write_text("".join(own))
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    cluster = Slurm(folder, names)
    try:
        cluster.run("ip", "link", "add", _BRIDGE, "type", "bridge")
        cluster.run("ip", "addr", "add", f"{_NETWORK}.1/24", "dev", _BRIDGE)
        cluster.run("ip", "link", "set", _BRIDGE, "up")
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        subprocess.run(["ip", "link", "delete", _BRIDGE], check=False)


def wait_for(is_true: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Waits until something is true."""
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, f"no {what} after {seconds} s"
        time.sleep(0.5)
