import pytest

from feddtpt_flwr.client_report import without_addresses
from feddtpt_flwr.config import RunConfig

CONFIG = RunConfig.from_run_config(
    {
        "endpoint": "https://llm.hospital.local:8443/v1",
        "language-model": "there",
        "masked-lm": "there",
        "masked-lm-endpoint": "https://llm.hospital.local/fill",
    }
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("https://llm.hospital.local:8443/v1: HTTP 503", "endpoint: HTTP 503"),
        ("https://llm.hospital.local/fill: HTTP 503", "masked-lm-endpoint: HTTP 503"),
        ("not valid for 'LLM.hospital.local'", "not valid for 'masked-lm-endpoint'"),
        ("my-llm.hospital.local is another", "my-llm.hospital.local is another"),
        ("the model is down", "the model is down"),
    ],
)
def test_the_server_is_not_told_where_a_nodes_services_are(text: str, told: str) -> None:
    assert without_addresses(text, CONFIG.to_run_config()) == told
