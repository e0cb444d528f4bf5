"""deploy/slurm.sh on a real Slurm: `make test-slurm`, as root, with slurm-wlm and munge installed."""

import json
import sys

import pytest

from tests.apps.conftest import ROOT
from tests.slurm_cluster import missing, slurm_cluster, wait_for

pytestmark = pytest.mark.slurm

FLAGS = ["--dataset=synthetic", "--num_sequences=6", "--num_frames=4", "--iterations=60", "--devices_per_worker=1"]


@pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}")
def test_an_evaluation_outlives_a_drained_node_and_a_lost_one(tmp_path):
    output = tmp_path / "evaluation"

    def ended() -> list[dict]:
        lines = (output / "results.jsonl").read_text().splitlines() if (output / "results.jsonl").exists() else []
        return [json.loads(line) for line in lines]

    folder = tmp_path / "slurm"
    folder.mkdir()
    with slurm_cluster(folder, nodes=3) as slurm:
        log = tmp_path / "job.log"
        submitted = slurm.run(
            *("sbatch", "--parsable", "--nodes=3", f"--chdir={ROOT}", f"--output={log}"),
            *(f"--export=ALL,PYTHON={sys.executable}", str(ROOT / "deploy/slurm.sh"), *FLAGS, f"--output={output}"),
        )

        def reached(count: int) -> bool:
            assert slurm.state(submitted) in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETED"), log.read_text()
            return len(ended()) >= count

        wait_for(lambda: reached(1), "first result", 500)
        slurm.run("scontrol", "update", "NodeName=e3r2", "State=DRAIN", "Reason=test")
        wait_for(lambda: reached(2), "second result", 300)
        slurm.lose("e3r3")
        wait_for(lambda: slurm.state(submitted) not in ("RUNNING", "COMPLETING"), "end of the job", 500)
        assert slurm.state(submitted) == "COMPLETED", log.read_text()
    results = ended()
    assert sorted(result["sequence"] for result in results) == sorted({result["sequence"] for result in results})
    assert len(results) == 6 and all(result["metrics"] for result in results), log.read_text()
