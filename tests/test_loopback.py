import pytest

from feddtpt_flwr.loopback import is_loopback, spare


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:8080/v1", True),
        ("https://localhost", True),
        ("http://[::1]:80", True),
        ("http://127.0.0.1.example.org", False),
        ("http://example.org/localhost", False),
        ("http://[broken", False),
        ("", False),
    ],
)
def test_what_is_this_machine(url: str, here: bool) -> None:
    assert is_loopback(url) == here


@pytest.mark.parametrize(
    ("given", "spared"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "example.org, ::1"}, "example.org,::1,localhost,127.0.0.1"),
        ({"NO_PROXY": "*"}, "*"),
        ({"no_proxy": "a", "NO_PROXY": "b"}, "a,localhost,127.0.0.1,::1"),
    ],
)
def test_what_was_spared_before_stays_so(given: dict[str, str], spared: str) -> None:
    spare(given)
    spare(given)
    assert given == {"NO_PROXY": spared, "no_proxy": spared}
