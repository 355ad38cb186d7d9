"""Who is not installed is named by the bench, with the reason in one line, and the others are measured."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.peers import __main__ as bench
from bench.peers import baselines, envoy, litellm, nginx_lua, peer, portkey
from bench.processes import Subject

HERE = Subject("here", "http://127.0.0.1:1/v1/chat/completions", "x", [])


@contextlib.contextmanager
def run_here(_folder: Path, _upstream: str) -> Iterator[Subject]:
    yield HERE


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A checkout in which no peer was installed."""
    for module in (peer, portkey, nginx_lua):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(portkey, "PACKAGE", tmp_path / "gateway")
    monkeypatch.setattr(nginx_lua, "CLIENT", tmp_path / "lua")
    monkeypatch.setattr(nginx_lua, "MODULES", ("none.so",))


@pytest.mark.usefixtures("bare")
def test_who_is_not_installed_is_named_and_the_others_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nginx either
    others = [envoy.PEER, nginx_lua.PEER, portkey.PEER, litellm.WITHOUT_BUDGET, litellm.WITH_BUDGET]
    known = peer.Peer("here", "nothing", lambda: "here 1", run_here)
    with contextlib.ExitStack() as stack:
        here, absent = bench.start(stack, [*others, known], tmp_path / "peers", "http://127.0.0.1:1")
    assert here == {"here": HERE}
    assert set(absent) == {other.name for other in others}
    said = capsys.readouterr().err
    for name, reason in absent.items():
        assert f"not here: {name}: {reason}\n" in said
        assert reason
        assert "\n" not in reason


@pytest.mark.usefixtures("bare")
def test_the_reason_says_what_is_missing() -> None:
    with pytest.raises(peer.Absent, match=r"\.venv-envoy has no envoy: scripts/install peers"):
        envoy.version()
    with pytest.raises(peer.Absent, match=r"\.venv-litellm has no package litellm: scripts/install peers"):
        litellm.version()
    with pytest.raises(peer.Absent, match="bench/peers/node has no @portkey-ai/gateway"):
        portkey.version()


@pytest.mark.usefixtures("bare")
def test_an_nginx_without_lua_is_no_nginx_with_lua(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nginx"
    program.write_text(f"#!/bin/sh\necho 'configure arguments: --modules-path={tmp_path}' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(peer.Absent, match=r"nginx has no none\.so: apt-get install libnginx-mod-http-lua"):
        nginx_lua.version()
    (tmp_path / "none.so").touch()
    with pytest.raises(peer.Absent, match=r"lua-nginx-redis is not in \.bench/lua"):
        nginx_lua.version()


def test_nginx_is_always_among_those_who_are_asked_for() -> None:
    assert bench.wanted(["Envoy"]) == [baselines.LIMIT, envoy.PEER]
    assert bench.wanted([""]) == list(bench.PEERS)
