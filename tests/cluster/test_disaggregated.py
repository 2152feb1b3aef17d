"""One job of two components: two ranks train on one node, a real SGLang server answers on the other."""

import json
from pathlib import Path

from tests.cluster.slurm import Slurm, changes, log_of, metrics
from tests.servers.process import CPU_ENVIRONMENT, CPU_FLAGS
from tests.support.miniature import Miniature


def test_a_server_of_the_second_component_serves_the_trainer_of_the_first(
    slurm: Slurm, miniature: Miniature, sglang_python: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    environment = {**CPU_ENVIRONMENT, "GLOO_SOCKET_IFNAME": "eth0"}
    values = {
        "num_steps": 2,
        "launch.server_nodes": 1,
        "launch.abort_after": 60,
        "rollout.engine": "sglang",
        "rollout.sglang.command": json.dumps([str(sglang_python), "-m", "sglang.launch_server"]),
        "rollout.sglang.dtype": "float32",
        "rollout.sglang.flags": json.dumps(CPU_FLAGS),
        "rollout.sglang.environment": json.dumps(environment),
        "weight_sync.bucket_mib": 1,
    }
    number = slurm.submit(changes(miniature, run, **values), 1)
    job = slurm.wait(number)
    log = log_of(run, number)
    server_log = "".join(path.read_text()[-2000:] for path in run.glob("jobs/*/start_*/server_*"))
    assert job["ExitCode"] == "0:0", log + server_log
    steps = metrics(run)
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert all(step["mismatch/kl"] < 0.01 for step in steps[1:])  # the server had the trainer's weights
    assert next(run.glob("jobs/*/start_0/server_0.url")).read_text().startswith("http://10.79.0.2:")
