"""Command line of the simulator: `python -m sandbox --help`."""

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path

from sandbox.openai.steering.settings import Live, Settings
from sandbox.openai.wire.server import start

_EPILOG = """\
Steer all requests:   curl -X PUT URL/__sandbox/settings -d '{"latency_ms": 200}'
Steer one request:    put [[sandbox {"status": 429, "headers": {"retry-after": "2"}}]] into any of
                      its texts; the keys are the fields of sandbox.openai.steering.directives.Directives.
See what was served:  curl URL/__sandbox/record?brief=1      (also ?clientRequestId= and ?since=)
Counts:               curl URL/__sandbox/stats
"""


def _arguments(argv: list[str]) -> Settings:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox",
        description="A simulator of the OpenAI API with its own record of what it served.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    defaults, live = Settings(), Live()
    add("--host", default=defaults.host, help="address to listen on (%(default)s)")
    add("--port", type=int, default=0, help="port to listen on; 0 takes a free one (%(default)s)")
    add("--api-key", default=defaults.api_key, help="the only accepted key (%(default)s)")
    add("--admin-key", default=defaults.admin_key, help="the key of /v1/organization/costs (%(default)s)")
    add("--record", type=Path, metavar="FILE", help="append the record to FILE as JSON lines")
    add(
        "--record-keep",
        type=int,
        default=defaults.record_keep,
        metavar="N",
        help="records kept in memory (%(default)s)",
    )
    add("--samples", type=Path, metavar="DIR", help="files of the replay directive (tests/samples)")
    add("--tls-cert", type=Path, metavar="FILE", help="PEM certificate: serve https")
    add("--tls-key", type=Path, metavar="FILE", help="PEM key of --tls-cert")
    add(
        "--dialect", choices=("openai", "azure", "generic"), default=defaults.dialect, help="server to be (%(default)s)"
    )
    add(
        "--deployments",
        type=json.loads,
        default={},
        metavar="JSON",
        help="azure: names of deployments, with their models",
    )
    add("--latency-ms", type=float, default=live.latency_ms, help="pause before headers, ms")
    add(
        "--chunk-interval-ms",
        type=float,
        default=live.chunk_interval_ms,
        help="pause between stream events, ms",
    )
    add("--output-tokens", type=int, default=live.output_tokens, help="length of an answer, tokens")
    add(
        "--reasoning-tokens",
        type=int,
        default=live.reasoning_tokens,
        help="reasoning tokens per choice of a reasoning model (%(default)s)",
    )
    add("--fail-rate", type=float, default=0.0, help="share of requests that fail, 0 to 1")
    add("--fail-status", type=int, default=live.fail_status, help="their status (%(default)s)")
    options = vars(parser.parse_args(argv))
    try:
        names = [name for name in Live.__struct_fields__ if name in options]
        chosen = Live(**{name: options.pop(name) for name in names})
        return Settings(**options, preload=True, live=chosen)
    except ValueError as error:
        parser.error(str(error))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = await start(settings)
    sys.stdout.write(f"sandbox listening on {server.url}\n")
    sys.stdout.flush()
    await stop.wait()
    await server.close()


def main(argv: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; return the exit code."""
    settings = _arguments(sys.argv[1:] if argv is None else argv)
    factory = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
