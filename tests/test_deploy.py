"""The recipes of deploy/: their files parse, the programs and flags that they name exist, and scripts do what they say.

Scripts run here with commands of the same names that only write down what they were asked for. `make test-slurm` has a
real Slurm.
"""

import os
import pathlib
import re
import subprocess
import tomllib

import pytest
import yaml

from easi3r_jax.apps.evaluate.main import FLAGS

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "deploy"
RECIPES = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.yaml")])


def test_there_are_recipes():
    assert {path.name for path in RECIPES} == {"slurm.sh", "tpu-vm.sh", "rayjob-gpu.yaml", "rayjob-tpu.yaml"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_flags_exist(path):
    known = {holder.name for group in FLAGS._groups for holder in group.holders}
    named = {
        name
        for line in path.read_text().splitlines()
        if "--dataset=" in line or "--checkpoint=" in line or "--cluster=" in line
        for name in re.findall(r"--([a-z_]+)=", line)
    }
    assert {"dataset", "checkpoint", "output", "cluster"} <= named <= known


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_parse(path):
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_pods_mount_what_they_declare(path):
    job = yaml.safe_load(path.read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert container["resources"]["limits"] == container["resources"]["requests"]
    (worker,) = cluster["workerGroupSpecs"]
    held = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert {"nvidia.com/gpu", "google.com/tpu"} & held.keys()
    assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]


def test_the_image_has_what_kuberay_talks_to():
    """Plain `ray`, which requirements.lock has, lacks the dashboard, and with it the server that takes jobs."""
    installed = "".join(
        re.findall(r"^RUN ([^#]*?)(?=^\w)", (FOLDER / "Dockerfile").read_text() + "\nEND", re.MULTILINE)
    )
    assert re.search(r'pip install [^&]*"ray\[default\]==\$\(pip show ray ', installed)
    assert installed.index("requirements.lock") < installed.index("ray[default]")


def test_an_image_holds_the_packages_and_nothing_else():
    """A list of what is taken: an environment, data, results or keys beside the code cannot get into an image."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    taken = {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in taken)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {"easi3r_jax", "experiments", "pyproject.toml", "requirements.lock", project["readme"]}
    assert needed | set(project["license-files"]) <= taken
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert taken <= {name.split("/")[0] for name in tracked}


class Stubs:
    """A folder of commands that come before the real ones.

    Args:
      folder: an empty one.
    """

    def __init__(self, folder):
        self._folder, self._log = folder, folder / "log"
        self._log.touch()

    def add(self, name, script):
        """A command; `said` writes down its arguments."""
        path = self._folder / name
        said = f'said() {{ printf "%s\\n" "$*" >> {self._log}; }}'
        path.write_text(f"#!/bin/bash\ncd {self._folder}\n{said}\n{script}\n")
        path.chmod(0o755)

    def file(self, name):
        return self._folder / name

    @property
    def log(self):
        return self._log.read_text().splitlines()

    def run(self, script, *arguments, **environment):
        known = {**os.environ, "PATH": f"{self._folder}:{os.environ['PATH']}", **environment}
        command = ["bash", FOLDER / script, *arguments]
        return subprocess.run(command, env=known, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def slurm(tmp_path):
    """The first of four nodes, which is called node1. Debian gives a host's own name the address 127.0.1.1."""
    stubs = Stubs(tmp_path)
    stubs.add("scontrol", '[ "$2" = hostnames ] && printf "node%s\\n" 1 2 3 4 || cat shown')
    stubs.add("getent", "cat resolved")
    stubs.add("hostname", "cat interfaces")
    stubs.add("sleep", "exec /bin/sleep 0.05")
    stubs.add("srun", "said srun $*; echo 4 > joining; exec /bin/sleep 10 > /dev/null 2>&1")
    # Another node joins at each look, until there are as many as `joining` says.
    count = "count=$(($(cat joined) + 1)); most=$(cat joining); echo $((count < most ? count : most)) | tee joined"
    stubs.add("python", f'case "$*" in -c*) {count} ;; *) said python $* ;; esac')
    for name, text in {
        "shown": "NodeName=node1 Arch=x86_64 NodeAddr=node1 NodeHostName=node1 Version=22.05",
        "resolved": "127.0.1.1       STREAM node1\n127.0.1.1       DGRAM  ",
        "interfaces": "127.0.0.1 10.0.0.5 172.17.0.1 fe80::1 ",
        "joined": "1",
        "joining": "1",
    }.items():
        stubs.file(name).write_text(text)
    return stubs


def submitted(stubs, **environment):
    known = {"SLURM_JOB_NODELIST": "node[1-4]", "SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_ID": "71"}
    return stubs.run("slurm.sh", "--dataset=davis", **known, SLURM_CPUS_ON_NODE="8", **environment)


def test_on_slurm_the_program_starts_when_all_nodes_have_joined(slurm):
    done = submitted(slurm)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 nodes have joined." in done.stdout
    head, others, program, stop = slurm.log
    assert "start --head --node-ip-address=10.0.0.5 --port=20071 --num-cpus=8" in head
    assert "--nodes=3 --ntasks=3 --relative=1" in others and "start --address=10.0.0.5:20071" in others
    assert program == "python -m experiments.evaluate --cluster=10.0.0.5:20071 --dataset=davis"
    assert stop.endswith("stop")
    assert slurm.file("joined").read_text().strip() == "4"


@pytest.mark.parametrize(
    ("shown", "resolved", "interfaces", "address"),
    [
        ("NodeName=node1 NodeAddr=10.7.7.7 X=1", "127.0.1.1 STREAM node1", "10.0.0.5", "10.7.7.7"),
        ("NodeName=node1 NodeAddr=node1-ib X=1", "10.8.8.8 STREAM node1-ib", "10.0.0.5", "10.8.8.8"),
        ("NodeName=node1 X=1", "", "127.0.0.1 10.0.0.5", "10.0.0.5"),
        ("NodeName=node1 NodeAddr=127.0.0.1 X=1", "127.0.1.1 STREAM node1", "127.0.0.1 ::1", None),
    ],
)
def test_on_slurm_the_first_node_has_an_address_that_others_reach(slurm, shown, resolved, interfaces, address):
    for name, text in {"shown": shown, "resolved": resolved, "interfaces": interfaces}.items():
        slurm.file(name).write_text(text)
    done = submitted(slurm)
    if address is None:
        assert done.returncode == 1 and done.stderr.startswith("error: node1 has no address but the loopback's")
        assert not slurm.log
    else:
        assert done.returncode == 0 and f"--node-ip-address={address} " in slurm.log[0], done.stderr


def test_on_slurm_nodes_on_which_ray_ends_are_noticed(slurm):
    slurm.add("srun", "said srun; exit 1")
    done = submitted(slurm)
    assert done.returncode == 1 and "error: Ray ended on the other nodes before they had joined" in done.stderr
    assert not any("experiments" in line for line in slurm.log) and slurm.log[-1].endswith("stop")


def test_on_slurm_ray_is_started_again_where_it_gave_up(slurm):
    """It gives up after half a minute, which a busy node may need."""
    slurm.add("srun", 'while [[ $1 == --* ]]; do shift; done; "$@"')
    slurm.file("tries").touch()
    starts = 'echo >> tries; [ "$(wc -l < tries)" = 3 ] && echo 4 > joining && exec /bin/sleep 5 > /dev/null 2>&1'
    program = slurm.file("python").read_text()
    slurm.file("python").write_text(program.replace("*) said", f"*--block) {starts} ;; *) said"))
    done = submitted(slurm)
    assert done.returncode == 0 and "4 of 4 nodes have joined." in done.stdout, done.stderr


@pytest.mark.parametrize("reached", [1, 3])
def test_on_slurm_nodes_are_waited_for_no_longer_than_that(slurm, reached):
    slurm.add("srun", "said srun; exec /bin/sleep 10 > /dev/null 2>&1")
    slurm.file("joined").write_text(str(reached - 1))  # at the first look, one more
    slurm.file("joining").write_text(str(reached))
    done = submitted(slurm, JOIN_SECONDS="1")
    if reached == 1:
        assert done.returncode == 1 and "error: no other node has joined" in done.stderr and "1 s" in done.stderr
    else:
        assert done.returncode == 0 and "3 of 4 nodes have joined." in done.stdout
    assert any("experiments" in line for line in slurm.log) == (reached > 1)


def test_a_slurm_job_asks_for_all_of_its_nodes():
    """Where Slurm divides memory, a job without --mem gets a part of it, however exclusive the nodes are."""
    asked = re.findall(r"^#SBATCH --(\S+)", (FOLDER / "slurm.sh").read_text(), re.MULTILINE)
    assert {"exclusive", "mem=0", "no-kill", "ntasks-per-node=1"} <= set(asked)


def test_hosts_of_a_tpu_join_at_an_address_that_they_reach(tmp_path):
    stubs = Stubs(tmp_path)
    (tmp_path / "easi3r_jax/.venv/bin").mkdir(parents=True)
    stubs.add("hostname", '[ "$1" = -I ] && echo "10.0.0.$HOST 172.17.0.1" || echo 127.0.1.1')
    for name in ("ray", "python"):
        stubs.add(f"easi3r_jax/.venv/bin/{name}", f"said {name} on $HOST: $*")
    # gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=WHICH --command=COMMAND
    hosts = '[ "${7#*=}" = all ] && hosts="1 2" || hosts=1'
    stubs.add("gcloud", f'{hosts}\nfor host in $hosts; do HOST=$host bash -c "${{8#*=}}" || exit; done')
    done = stubs.run("tpu-vm.sh", "--dataset=davis", "--output=a b", TPU="name", ZONE="zone")
    assert done.returncode == 0, done.stderr
    assert stubs.log == [
        "ray on 1: start --head --node-ip-address=10.0.0.1 --port=6379 --include-dashboard=false",
        "ray on 2: start --address=10.0.0.1:6379",
        "python on 1: -m experiments.evaluate --cluster=10.0.0.1:6379 --dataset=davis --output=a b",
        "ray on 1: stop",
        "ray on 2: stop",
    ]
