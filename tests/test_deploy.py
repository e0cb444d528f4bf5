"""The recipes of deploy/: their files parse, and the programs and flags that they name exist."""

import pathlib
import re
import subprocess

import pytest
import yaml

from easi3r_jax.apps.evaluate.main import FLAGS

FOLDER = pathlib.Path(__file__).parents[1] / "deploy"
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
