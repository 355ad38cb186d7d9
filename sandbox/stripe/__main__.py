"""Command line of the simulator: `python -m sandbox.stripe --help`."""

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path

import msgspec

from sandbox.stripe.account.settings import Live, Settings, Webhook, merged
from sandbox.stripe.wire.server import start
from sandbox.stripe.wire.state_file import UnreadableState

_EPILOG = """\
Client:        stripe.StripeClient(KEY, base_addresses={"api": URL})
Webhooks:      --webhook http://127.0.0.1:8080/webhooks/stripe --webhook-secret whsec_...
Chaos:         curl -X PUT URL/__stripe/settings -d '{"delivery": {"copies_max": 5, "shuffle_ms": 200}}'
Pay:           curl -X POST URL/__stripe/sessions/cs_.../pay -d '{"outcome": "succeed"}'
Failing calls: curl -X POST URL/__stripe/faults -d '{"kind": "reset", "after": true, "path": "refunds"}'
Money moved:   curl URL/__stripe/record
Stripe CLI:    start with --api-version 2026-08-26.dahlia, then
               stripe trigger checkout.session.completed --api-base URL --api-key sk_test_sandbox
"""


def _arguments(argv: list[str]) -> Settings:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.stripe",
        description="A simulator of the Stripe API with its own record of the money that moved.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, defaults = parser.add_argument, Settings()
    add("--host", default=defaults.host, help="address to listen on (%(default)s)")
    add("--port", type=int, default=0, help="port to listen on; 0 takes a free one (%(default)s)")
    add("--api-key", default=defaults.api_key, help="the only accepted key (%(default)s)")
    add("--public-url", help="base of the URLs of hosted pages (the address listened on)")
    add("--record", type=Path, metavar="FILE", help="append the record of money to FILE as JSON lines")
    add(
        "--state",
        type=Path,
        metavar="FILE",
        help="keep everything in FILE, the port as well, and go on from it at the next start",
    )
    add("--webhook", action="append", default=[], metavar="URL", help="send events there; may be given again")
    add(
        "--webhook-secret",
        action="append",
        default=[],
        metavar="whsec_...",
        help="its secret, in the order of --webhook",
    )
    add("--webhook-events", metavar="TYPE,...", help="event types sent to all --webhook (all)")
    add(
        "--api-version",
        default=defaults.account_api_version,
        help="version of events and of calls that name none (%(default)s)",
    )
    add("--seed", type=int, help="make ids repeatable")
    add("--settings", metavar="JSON", default="{}", help="what GET /__stripe/settings shows, or a part of it")
    options = parser.parse_args(argv)
    if len(options.webhook_secret) > len(options.webhook):
        parser.error("more --webhook-secret than --webhook")
    if options.seed is not None and options.state is not None:
        parser.error("--seed begins the same ids anew, and --state has them already: give one of them")
    secrets = options.webhook_secret + [None] * (len(options.webhook) - len(options.webhook_secret))
    events = options.webhook_events.split(",") if options.webhook_events else ["*"]
    try:
        return Settings(
            host=options.host,
            port=options.port,
            api_key=options.api_key,
            public_url=options.public_url,
            record=options.record,
            state=options.state,
            account_api_version=options.api_version,
            webhooks=tuple(
                Webhook(url=url, secret=secret, enabled_events=events)
                for url, secret in zip(options.webhook, secrets, strict=True)
            ),
            seed=options.seed,
            live=merged(Live(), msgspec.json.decode(options.settings)),
        )
    except ValueError as error:
        parser.error(str(error))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = await start(settings)
    sys.stdout.write(f"stripe sandbox listening on {server.url}\n")
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
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_serve(settings))
    except (UnreadableState, OSError) as error:
        hint = "; move it away to begin with an empty account" if isinstance(error, UnreadableState) else ""
        sys.stderr.write(f"stripe sandbox: {error}{hint}\n")
        return 2
    except ModuleNotFoundError as error:
        sys.stderr.write(f"{error}: parameters are checked against the stripe library (pip install 'stripe>=16,<17')\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
