"""What a node with services imports, seen from a fresh process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from feddtpt_flwr.data import Example
from feddtpt_flwr.language_model.weights import converted, resolve_device, resolve_dtype
from simulations.llama_server import llama_server
from tests.fill_mask_server import FillMaskService

REPOSITORY = Path(__file__).parents[1]
HEAVY = ["torch", "transformers", "sklearn", "scipy", "datasets", "ray", "matplotlib"]

TELL = f"""
import sys
print("imported", [name for name in {[*HEAVY, "pandas"]} if name in sys.modules])
"""

MESSAGES = """
import json, sys
import numpy as np
from flwr.common import Context, RecordDict
from feddtpt_flwr.client_app import client_fn

run_config, node_config = map(json.loads, sys.argv[1:])
context = Context(
    run_id=1, node_id=1, node_config=node_config, state=RecordDict(), run_config=run_config
)
client = client_fn(context).numpy_client
prompt = np.array(client._vocabulary.encode("Movie review."))
_, _, searched = client.fit([prompt], {"server-round": 1})
_, _, scored = client.evaluate([prompt], {"server-round": 1})
assert "failure" not in searched and "failure" not in scored, (searched, scored)
assert searched["requests"] > 0 and searched["trials"] > 0 and scored["num-scored"] == 16
"""


def imported(program: str, *arguments: str, **variables: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}
    done = subprocess.run(
        [sys.executable, "-c", program + TELL, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("imported "))
    return list(json.loads(line.removeprefix("imported ").replace("'", '"')))


@pytest.mark.parametrize(
    "module",
    [
        "feddtpt_flwr.config",
        "feddtpt_flwr.fedpit.config",
        "strategies",
        "strategies.fedpit",
        "feddtpt_flwr.client_app",
        "feddtpt_flwr.cli",
    ],
)
def test_importing_is_cheap(module: str) -> None:
    assert imported(f"import {module}") == []


def test_the_embedded_models_do_without_transformers(embedded_assets: None) -> None:
    """Which takes longer to load than any of them."""
    device = resolve_device("auto")
    converted("embedded", resolve_dtype("auto", device))  # what does need it, once on a machine
    program = """
import numpy as np
from feddtpt_flwr.encoder import EncoderEmbedder
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.masked_lm.causal import CausalInfiller

model = LocalLanguageModel("embedded")
assert model.answer(["The capital of France is"], ["Paris", "Rome"]) == ["Paris"]
infiller = CausalInfiller("embedded")
paris = infiller.vocabulary.encode("Paris")
assert infiller.log_likelihood([paris])[0] < 0
assert EncoderEmbedder(infiller.vocabulary).embed([np.array(paris)])[0].any()
"""
    assert imported(program) == ["torch"]


@pytest.mark.slow
def test_messages_of_a_node_with_services_import_no_model_library(
    embedded_assets: None,
    reviews: tuple[Example, ...],
    tiny_bert: Path,
    fill_mask_service: FillMaskService,
    tmp_path: Path,
) -> None:
    own = tmp_path / "own.jsonl"
    rows = [json.dumps({"text": e.input.strip(), "label": e.label}) for e in reviews[:20]]
    own.write_text("\n".join(rows), encoding="utf-8")
    with llama_server() as endpoint:
        run_config = {
            "clients": "own-data",
            "k-shot": 4,
            "public-per-class": 0,
            "queries-per-round": 24,
            "max-fluency-loss": 50.0,
            "seed-prompt": "Movie review.",
            "endpoint": endpoint,
            "language-model": "smollm2",
            "cache-size-mib": 0,
            "masked-lm": str(tiny_bert),
            "masked-lm-endpoint": fill_mask_service.url,
            "masked-lm-key-env": "FILL_KEY",
        }
        modules = imported(
            MESSAGES,
            json.dumps(run_config),
            json.dumps({"data-path": str(own)}),
            FILL_KEY=fill_mask_service.key,
        )
    assert not set(HEAVY) & set(modules)
