"""`make run` and `tollkeeper demo`: serve at once, on OpenAI when OPENAI_API_KEY is set, else on the built-in sandbox.

There is a demo account: on first start it is created and granted credits, and its key is kept in var/demo.json (mode
0600), so that the lines to paste can be printed at every start. The made-up Stripe is kept in var/sandbox-stripe.json,
as purchases are kept in SQL; var/sandbox.env tells commands in a second terminal of both sandboxes.
"""

import asyncio
import errno
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from billing.balances.journal_file import lock_file
from billing.ledger.accounts import Accounts, KeyRules
from billing.ledger.ledger import Ledger
from billing.ledger.portal_tokens import PortalTokens
from billing.money.amounts import parse_credits
from billing.money.errors import BillingError, StoreUnavailable
from billing.storage.database import Database
from billing.storage.private_files import ONLY_OURS_FOLDER
from config.errors import ConfigError
from config.load import load_settings
from config.secrets import stripe_keys, upstream_key
from config.settings import Settings
from proxy.cli.context import Add, Refusal, local_url
from proxy.cli.serve import serve
from proxy.credits_page.sign_in import link_url
from proxy.server.startup_checks import prepare_database
from proxy.server.supervisor import bind, die_with_parent

DEMO_FILE = Path("var/demo.json")
DEMO_CREDITS = "1000"
SANDBOX_KEY = "sk-sandbox"
STRIPE_KEY = "sk_test_sandbox"
SANDBOX_PACE_MS = "15"
STRIPE_STATE = Path("var/sandbox-stripe.json")
SECOND_TERMINAL = Path("var/sandbox.env")
OPENAI_NAMES = ("OPENAI_API_KEY", "TOLLKEEPER_UPSTREAM__BASE_URL")
STRIPE_NAMES = (
    "STRIPE_API_KEY",
    "STRIPE_WEBHOOK_SECRET",
    "TOLLKEEPER_STRIPE__API_BASE",
    "TOLLKEEPER_STRIPE__SUCCESS_URL",
    "TOLLKEEPER_STRIPE__CANCEL_URL",
    "TOLLKEEPER_PORTAL__PUBLIC_URL",
)
"""What a sandbox is reached by; set here, and in SECOND_TERMINAL."""


def register(commands: Any, add: Add) -> None:
    """Add the command to the parser."""
    add(
        commands,
        "demo",
        None,
        "`make run` without make: serve a demo at once, on simulators unless OPENAI_API_KEY is set.",
    )


def main(path: Path | None = None) -> int:
    """Start what is missing, print what to paste, serve until SIGTERM or Ctrl-C. `path`: the configuration."""
    path = path or (Path("proxy.toml") if Path("proxy.toml").exists() else None)
    forget_sandboxes()
    try:
        settings = load_settings(path)
        check_ports(settings)
        if upstream_key(settings):
            check_no_sandbox_money()
        sandbox = None if upstream_key(settings) else start_sandbox()
        bank = None if sandbox is None or stripe_keys(settings) else start_stripe(settings)
    except ConfigError as error:
        print(f"tollkeeper: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        tell_second_terminal((*(OPENAI_NAMES if sandbox else ()), *(STRIPE_NAMES if bank else ())))
        demo = asyncio.run(demo_account(settings))
        print_welcome(settings, demo, sandboxed=sandbox is not None)
        return serve(load_settings(path), path)  # once more: the sandboxes are in the environment now
    except (BillingError, ConfigError, Refusal) as error:
        print(f"tollkeeper: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    finally:
        for process in (sandbox, bank):
            if process is not None:
                process.terminate()
                process.wait()
        tell_second_terminal(())


def forget_sandboxes() -> None:
    """Forget what a shell has from SECOND_TERMINAL: it knows sandboxes of another time, and starts like any other."""
    if os.environ.get("OPENAI_API_KEY") == SANDBOX_KEY:
        for name in OPENAI_NAMES:
            os.environ.pop(name, None)
    if os.environ.get("STRIPE_API_KEY") == STRIPE_KEY:
        for name in STRIPE_NAMES:
            os.environ.pop(name, None)


def check_ports(settings: Settings) -> None:
    """Raise ConfigError when we could not listen: it is said before anything is started or printed."""
    listen = settings.listen
    if _serves_here(settings):
        raise ConfigError("proxy.toml", "embedded.path", "is in use", _other_place(listen.port + 1))
    try:
        for listener in bind(settings).sockets():
            listener.close()
    except OSError as error:
        ports = [str(port) for port in (listen.port, listen.side_port, listen.admin_port) if port]
        which = f"port {ports[0]}" if len(ports) == 1 else f"one of the ports {', '.join(ports)}"
        reason = (
            f"{which} is taken" if error.errno == errno.EADDRINUSE else f"{which} cannot be used ({error.strerror})"
        )
        fix = f"stop what listens there, or choose another port: TOLLKEEPER_LISTEN__PORT={listen.port + 1} make run"
        raise ConfigError("proxy.toml", "listen.port", reason, fix) from None


def check_no_sandbox_money() -> None:
    """Raise ConfigError when the ledger here holds credits that made-up cards bought: OpenAI's bill is real."""
    if STRIPE_STATE.exists():
        raise ConfigError(
            str(STRIPE_STATE),
            "OPENAI_API_KEY",
            "this folder's ledger holds credits bought at the made-up Stripe, and a real key would serve them",
            f"begin a new one: `mv {STRIPE_STATE.parent} {STRIPE_STATE.parent}-sandbox`, then `make run` again",
        )


def _serves_here(settings: Settings) -> bool:
    """Tell whether a server works on this folder's ledger: a second one could not."""
    path = Path(settings.embedded.path)
    if settings.redis.url or not path.exists():
        return False
    try:
        lock_file(path).close()
    except StoreUnavailable:
        return True
    return False


def _other_place(port: int) -> str:
    command = Path(sys.executable).with_name("tollkeeper")
    place = Path.cwd().with_name(f"{Path.cwd().name}-second")
    return (
        "this folder is being served already: use that server, or stop it. One beside it needs a folder and a port of "
        f"its own: mkdir {place} && cd {place} && TOLLKEEPER_LISTEN__PORT={port} {command} demo"
    )


def tell_second_terminal(names: Iterable[str]) -> None:
    """Write these variables for commands beside us.

    The file is there without any as well, so that reading it always works.
    """
    lines = [f"{name}={shlex.quote(os.environ[name])}" for name in names]
    SECOND_TERMINAL.parent.mkdir(mode=ONLY_OURS_FOLDER, parents=True, exist_ok=True)
    SECOND_TERMINAL.unlink(missing_ok=True)
    with os.fdopen(
        os.open(SECOND_TERMINAL, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
    ) as file:
        file.write("\n".join(["# written by `make run`: what its sandboxes are reached by, while it runs", *lines, ""]))


def start_sandbox() -> "subprocess.Popen[bytes]":
    """Start the simulator on a free loopback port; point this process's settings at it. Raises ConfigError."""
    command = [sys.executable, "-m", "sandbox", "--api-key", SANDBOX_KEY, "--chunk-interval-ms", SANDBOX_PACE_MS]
    # our own simulator, started before there are threads
    process = subprocess.Popen(  # noqa: S603
        command,
        stdout=subprocess.PIPE,
        preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509
    )
    line = process.stdout.readline().decode() if process.stdout else ""
    if "listening on " not in line:
        raise ConfigError("sandbox", "(start)", "the sandbox did not start", "run `python -m sandbox` to see why")
    os.environ["OPENAI_API_KEY"] = SANDBOX_KEY
    os.environ["TOLLKEEPER_UPSTREAM__BASE_URL"] = line.split("listening on ")[1].strip()
    return process


def start_stripe(settings: Settings) -> "subprocess.Popen[bytes]":
    """Start Stripe's simulator on a free loopback port, wired to our webhook; made-up cards buy credits.

    Raises ConfigError.
    """
    base, secret = local_url(settings, settings.listen.port), "whsec_" + secrets.token_hex(8)
    command = [sys.executable, "-m", "sandbox.stripe", "--api-key", STRIPE_KEY, "--state", str(STRIPE_STATE)]
    STRIPE_STATE.parent.mkdir(mode=ONLY_OURS_FOLDER, parents=True, exist_ok=True)
    command += ["--webhook", f"{base}/webhooks/stripe", "--webhook-secret", secret]
    # our own simulator, started before there are threads
    process = subprocess.Popen(  # noqa: S603
        command,
        stdout=subprocess.PIPE,
        preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509
    )
    line = process.stdout.readline().decode() if process.stdout else ""
    if "listening on " not in line:
        raise ConfigError("sandbox", "(start)", "Stripe's simulator did not start", "its own line above says why")
    os.environ |= {
        "STRIPE_API_KEY": STRIPE_KEY,
        "STRIPE_WEBHOOK_SECRET": secret,
        "TOLLKEEPER_STRIPE__API_BASE": line.split("listening on ")[1].strip(),
        "TOLLKEEPER_STRIPE__SUCCESS_URL": settings.stripe.success_url
        or f"{base}/credits?session={{CHECKOUT_SESSION_ID}}",
        "TOLLKEEPER_PORTAL__PUBLIC_URL": settings.portal.public_url or base,
        "TOLLKEEPER_STRIPE__CANCEL_URL": settings.stripe.cancel_url or f"{base}/credits",
    }
    return process


class Demo(NamedTuple):
    """The account to try things with; `page` opens its Credits page once."""

    account_id: str
    key: str
    page: str


async def demo_account(settings: Settings) -> Demo:
    """Open the demo account, created on first start. Raises StoreUnavailable, ConfigError."""
    database = Database(settings.database.url, settings.database.pool_size, settings.database.timeout_seconds)
    try:
        await prepare_database(database)
        if not DEMO_FILE.exists():  # noqa: ASYNC240 - nothing is served yet
            await _create_demo(database)
        kept = json.loads(DEMO_FILE.read_text(encoding="utf-8"))  # noqa: ASYNC240 - nothing is served yet
        token, _ = await PortalTokens(database).link(kept["accountId"])
    finally:
        await database.close()
    return Demo(
        kept["accountId"],
        kept["apiKey"],
        link_url(settings.portal.public_url or local_url(settings, settings.listen.port), token),
    )


async def _create_demo(database: Database) -> None:
    accounts = Accounts(database)
    account_id = await accounts.create("demo")
    _, key = await accounts.create_key(account_id, KeyRules())
    await Ledger(database).grant(
        account_id, parse_credits(DEMO_CREDITS), f"demo:{account_id}", "quickstart", "demo credits"
    )
    DEMO_FILE.parent.mkdir(mode=ONLY_OURS_FOLDER, parents=True, exist_ok=True)
    with os.fdopen(os.open(DEMO_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump({"accountId": account_id, "apiKey": key}, file)


def print_welcome(settings: Settings, demo: Demo, *, sandboxed: bool) -> None:
    """Print what to paste."""
    base, key = local_url(settings, settings.listen.port), demo.key
    buying = f"""
There, credits are bought at a made-up Stripe with the card 4242 4242 4242 4242. By hand: open the `url` that this \
answers

  curl {base}/api/billing/checkout -H "Authorization: Bearer {key}" -d '{{"packageCode": "starter"}}'

`tollkeeper` in a second terminal finds both sandboxes after this line (docs/sandbox.md says what they can do):

  set -a; . {SECOND_TERMINAL}; set +a
"""
    if sandboxed:
        print("=" * 78)
        print("  NO OPENAI_API_KEY IS SET: serving from the built-in SANDBOX.")
        print("  Answers are made-up words; nothing reaches OpenAI, nothing costs money.")
        print("  To serve the real API:  OPENAI_API_KEY=sk-... make run")
        print("=" * 78)
    print(
        f"""
Demo account, with {DEMO_CREDITS} credits on first start ($1.00). Its API key:

  {key}

Try it with curl:

  curl {base}/v1/chat/completions -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \
-d '{{"model": "gpt-6-luna", "messages": [{{"role": "user", "content": "Say hello"}}], "max_completion_tokens": 500}}'

Or with the OpenAI SDK (pip install openai):

  python3 -c 'from openai import OpenAI; c = OpenAI(base_url="{base}/v1", api_key="{key}"); \
print(c.chat.completions.create(model="gpt-6-luna", messages=[{{"role": "user", "content": "Say hello"}}], \
max_completion_tokens=500).choices[0].message.content)'

What it cost:  curl {base}/api/billing/me -H "Authorization: Bearer {key}"

The Credits page, once within ten minutes (`.venv/bin/tollkeeper portal {demo.account_id}` makes another link):

  {demo.page}
{buying if sandboxed else ""}""",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
