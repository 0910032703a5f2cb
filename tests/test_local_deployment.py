"""Tables of the experiments with a deployment, with made-up figures."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from simulations import bench_message, deployment
from simulations.deployment import Outcome
from simulations.local_deployment import descendants, wait_until

OUTCOME = Outcome(0.7, 0.5, "Good or bad?", 5, 300, 0, 0, (), 100.0)


def test_a_disturbed_run_stands_beside_the_undisturbed_one() -> None:
    disturbed = replace(OUTCOME, accuracy=None, failures=3, faults=("round 1: a client killed",))
    content = {"date": "2026-11-22", "cores": 2, "settings": {"k-shot": 4}}
    table = deployment._table(content, {"undisturbed": OUTCOME, "disturbed": disturbed})
    assert "| undisturbed | 5 | 0.500 | 0.700 | 300 | 0 | 0 | 100 | Good or bad? |" in table
    assert "| disturbed | 5 | 0.500 | not known |" in table
    assert table.endswith("Faults: round 1: a client killed.\n")


def test_a_messages_share_is_told() -> None:
    result = {
        "repeats": 2, "empty": 3.0, "app": 5.0, "answers": 0.5, "overhead": 1.5, "cpu": 1.2,
        "heavy": [], "load_before": 0.1, "date": "2026-11-22", "cores": 2,
    }  # fmt: skip
    table = bench_message.markdown(result)
    assert "| beyond both: this app's own | 1.50 |" in table
    assert "Model libraries imported: none." in table


def test_all_that_a_process_started_is_found() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        wait_until(lambda: len(descendants(process.pid)) == 2, "the child", 30)
        assert os.getpid() not in descendants(process.pid)
        process.communicate(b"\n")


def test_what_does_not_happen_is_not_waited_for_for_ever() -> None:
    with pytest.raises(TimeoutError, match="waited 0 s for a miracle"):
        wait_until(lambda: False, "a miracle", 0)
