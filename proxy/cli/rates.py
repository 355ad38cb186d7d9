"""`tollkeeper rates`: import, refresh, compare, activate and show rate cards."""

import json
from pathlib import Path
from typing import Any

from billing.accounting.margins import selling_below
from billing.ledger.rate_cards import RateCards
from billing.money.pricing import PriceBook, load_catalogue
from billing.money.rate_card import difference, read_card, refreshed
from billing.storage.database import now_ms
from config.errors import ConfigError
from proxy.admin.rate_cards import list_rate_cards
from proxy.cli.context import Add, Context, Refusal, Result, actor, because, who
from proxy.customer_api.money_in import offers_of
from proxy.web.times import iso_time, read_time

DIFF_LINES = 200


def register(commands: Any, add: Add) -> None:
    """Add the group to the parser."""
    rates = commands.add_parser("rates", help="Import, compare, activate and show rate cards.").add_subparsers(
        dest="verb", required=True
    )
    import_ = add(rates, "import", _import, "Check a rate card and keep it. It applies once it is activated.")
    import_.add_argument("file", nargs="?", type=Path, help="a rate card as JSON")
    import_.add_argument("--shipped", action="store_true", help="the card that this version ships")
    refresh = add(rates, "refresh", _refresh, "Draft a card from a newer catalogue; nothing applies.")
    refresh.add_argument("file", nargs="?", type=Path, help="a newer catalogue (default: the shipped one)")
    refresh.add_argument("--id", metavar="CARD", help="the draft's id (default: made of both)")
    refresh.add_argument("--out", type=Path, metavar="FILE", help="write the draft there, and keep none")
    diff = add(rates, "diff", _diff, "What changes from one card to another.")
    diff.add_argument("before", nargs="?", help="default: the active card")
    diff.add_argument("after", help="a card's id")
    activate = add(rates, "activate", _activate, "Let a card apply, now or from a time on.")
    activate.add_argument("card")
    because(activate)
    activate.add_argument("--from", dest="start", metavar="TIME", help="ISO 8601, such as 2026-12-01T00:00:00Z")
    show = add(rates, "show", _show, "All cards and the active one; or a model's prices.")
    show.add_argument("card", nargs="?", help="default: the active card")
    show.add_argument("--model")


async def _import(context: Context) -> Result:
    given = context.arguments
    if (given.file is None) == (not given.shipped):
        raise ConfigError("command line", "rates import", "takes either a file or --shipped", "name one of them")
    document = load_catalogue() if given.shipped else read_card(_read(given.file))
    new = await RateCards(context.database).add(document, actor(), who())
    card_id, models = document["catalogueId"], len(document["models"])
    text = (
        f"{'Imported' if new else 'Already here:'} {card_id} ({models} models). "
        f"`tollkeeper rates activate {card_id}` makes it apply."
    )
    warning = _below(context, document)
    result = {"rateCardId": card_id, "new": new, "models": models, "warning": warning or None}
    return result, "\n".join(filter(None, (text, warning))), 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "rates import", f"cannot be read ({error})", "name a readable JSON file") from None


async def _refresh(context: Context) -> Result:
    """Keep what the active card alone has: what customers pay, and models that the newer catalogue does not list."""
    cards, given = RateCards(context.database), context.arguments
    before = await active_card(cards)
    active = await cards.get(before)
    newer = load_catalogue() if given.file is None else read_card(_read(given.file))
    draft = read_card(json.dumps(refreshed(active, newer, given.id)))
    card_id, rows = draft["catalogueId"], difference(active, draft)
    others = [name for name, row in draft["models"].items() if row != active["models"].get(name)]
    others = [name for name in others if not any(str(row["price"]).startswith(f"{name}.") for row in rows)]
    found = {"before": before, "rateCardId": card_id, "new": False, "changes": rows, "otherwiseChanged": others}
    if not rows and not others:
        return found, f"{before}, which is active, says all that {newer['catalogueId']} says.", 0
    lines = [_diff_text(rows), f"otherwise changed (limits, endpoints): {', '.join(others)}" if others else ""]
    if given.out is not None:
        _write(given.out, draft)
        lines.append(f"Written to {given.out}; {before} stays active. `tollkeeper rates import {given.out}` keeps it.")
    else:
        found["new"] = await cards.add(draft, actor(), who())
        made = "Drafted" if found["new"] else "Already here:"
        lines.append(f"{made} {card_id}; {before} stays active. `tollkeeper rates activate {card_id}` makes it apply.")
    return found, "\n".join(line for line in lines if line), 0


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), "rates refresh", f"cannot be written ({error})", "name another file") from None


async def _diff(context: Context) -> Result:
    cards, given = RateCards(context.database), context.arguments
    before = given.before or await active_card(cards)
    rows = difference(await cards.get(before), await cards.get(given.after))
    text = _diff_text(rows) if rows else "The two cards have the same prices."
    return {"before": before, "after": given.after, "changes": rows}, text, 0


def _diff_text(rows: list[dict[str, str | None]]) -> str:
    lines = [f"{row['price']}: {row['before'] or 'none'} → {row['after'] or 'none'}" for row in rows[:DIFF_LINES]]
    if len(rows) > DIFF_LINES:
        lines.append(f"and {len(rows) - DIFF_LINES} more: see --json")
    return "\n".join(lines)


async def _activate(context: Context) -> Result:
    cards, given = RateCards(context.database), context.arguments
    start = now_ms() if given.start is None else read_start(given.start)
    await cards.activate(given.card, start, actor(), who(), given.reason)
    active = await active_card(cards)
    text = f"{given.card} applies from {iso_time(start)} on. Active now: {active}. Running servers follow within 2 s."
    warning = _below(context, await cards.get(given.card))
    result = {"rateCardId": given.card, "effectiveAt": iso_time(start), "active": active, "warning": warning or None}
    return result, "\n".join(filter(None, (text, warning))), 0


def _below(context: Context, document: dict[str, Any]) -> str:
    """Return a warning where this card sells below cost; "" where it does not."""
    settings = context.settings
    book = PriceBook(document, settings.billing.markup, settings.billing.rounding_mode)
    words, below = selling_below(book, offers_of(settings), settings.jobs.margin_target_percent)
    return f"WARNING: this card sells below what it must: {words}." if below else ""


def read_start(text: str) -> int:
    """Read the time from which something applies, as Unix milliseconds. Raises ConfigError."""
    try:
        return read_time(text)
    except ValueError:
        raise ConfigError(
            "command line", "--from", f"{text!r} is not a time of the years 1 to 9999", "write 2026-12-01T00:00:00Z"
        ) from None


async def _show(context: Context) -> Result:
    cards, given = RateCards(context.database), context.arguments
    active = await active_card(cards)
    if given.model is not None:
        document = await cards.get(given.card or active)
        row = document["models"].get(given.model)
        if row is None:
            raise Refusal(f"the rate card {document['catalogueId']} has no model {given.model!r}")
        return {"rateCardId": document["catalogueId"], "model": given.model, **row}, _prices_text(row), 0
    if given.card is not None:
        document = await cards.get(given.card)
        return document, "\n".join(f"{name:40} {_short(row)}" for name, row in sorted(document["models"].items())), 0
    listed = await list_rate_cards(cards)
    lines = []
    for row in listed["cards"]:
        mark = "*" if row["rateCardId"] == active else " "
        lines.append(f"{mark} {row['rateCardId']}  imported {row['createdAt']} by {row['actor']}")
    lines += [f"  from {_since(row['effectiveAt'])}: {row['rateCardId']}" for row in listed["activations"]]
    return listed, "\n".join(lines), 0


async def active_card(cards: RateCards) -> str:
    """Return the id of the card that applies now. Raises Refusal where there is none."""
    active = await cards.active_id()
    if active is None:
        raise Refusal("no rate card is active: `tollkeeper rates import --shipped`, then `tollkeeper rates activate`")
    return active


def _short(row: dict[str, Any]) -> str:
    block = row["rates"].get("default", {}).get("short", {})
    parts = [f"{part} {price}" for part, price in sorted(block.items())]
    parts += [f"{unit} {row[unit]}" for unit in ("per_second", "per_character") if unit in row]
    return ", ".join(parts) or "no price: not sold"


def _prices_text(row: dict[str, Any]) -> str:
    lines = ["USD per million tokens:"]
    for tier, block in sorted(row["rates"].items()):
        lines += [
            f"  {tier:9} {context:5} {part:20} {price}"
            for context, parts in sorted(block.items())
            for part, price in sorted(parts.items())
        ]
    lines += [f"  {unit.replace('_', ' ')}: {row[unit]}" for unit in ("per_second", "per_character") if unit in row]
    lines += [f"  per call: {name} {price}" for name, price in sorted(row.get("per_call", {}).items())]
    if row.get("ends") is not None:
        lines.append(f"  ends: {row['ends']}" + (f", then {row['successor']}" if row.get("successor") else ""))
    return "\n".join(lines)


def _since(effective: str) -> str:
    """Write when a card came into force; the first one did before there was any."""
    return "the beginning" if effective.startswith("1970-") else effective
