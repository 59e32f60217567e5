"""What the engines say, in the words of their several versions."""

import pytest

from gitsync.sandbox.engine import EngineError, _gateway, _reason


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("Error: no such image\n", "no such image"),
        ("level=warning\nError: setting rlimit type 7\n", "setting rlimit type 7"),
        ("docker: Error response from daemon: no.\nSee 'docker run --help'.\n", "Error response from daemon: no."),
        (
            'invalid argument "x:" for "--add-host"\n\nUsage:  docker create\n\nRun \'docker create --help\'\n',
            'invalid argument "x:" for "--add-host"',
        ),
        ("\n", ""),
    ],
)
def test_an_error_is_what_happened_and_no_advice(said: str, reason: str) -> None:
    assert _reason(said) == reason


@pytest.mark.parametrize(
    ("configuration", "gateway"),
    [
        (b'[{"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.5"}]', "172.17.0.5"),
        (b'[{"Subnet": "172.17.0.0/16"}]', "172.17.0.1"),  # of a daemon that was never started again
        (b'[{"Subnet": "fd00::/64", "Gateway": "fd00::1"}, {"Subnet": "10.8.0.0/24"}]', "10.8.0.1"),
    ],
)
def test_where_docker_reaches_this_machine(configuration: bytes, gateway: str) -> None:
    assert _gateway(configuration) == gateway


@pytest.mark.parametrize("configuration", [b"[]", b"null"])
def test_docker_without_a_bridge_is_told(configuration: bytes) -> None:
    with pytest.raises(EngineError, match="no bridge network"):
        _gateway(configuration)
