"""`tollkeeper rates`: import, compare, activate and show rate cards."""

from pathlib import Path
from typing import Any

from billing.ledger.rate_cards import RateCards
from billing.money.pricing import load_catalogue
from billing.money.rate_card import difference, read_card
from billing.storage.database import now_ms
from config.errors import ConfigError
from proxy.admin.rate_cards import list_rate_cards
from proxy.cli.context import Add, Context, Refusal, Result, actor, because, who
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
    return {"rateCardId": card_id, "new": new, "models": models}, text, 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "rates import", f"cannot be read ({error})", "name a readable JSON file") from None


async def _diff(context: Context) -> Result:
    cards, given = RateCards(context.database), context.arguments
    before = given.before or await _active(cards)
    rows = difference(await cards.get(before), await cards.get(given.after))
    lines = [f"{row['price']}: {row['before'] or 'none'} → {row['after'] or 'none'}" for row in rows[:DIFF_LINES]]
    if len(rows) > DIFF_LINES:
        lines.append(f"and {len(rows) - DIFF_LINES} more: see --json")
    return (
        {"before": before, "after": given.after, "changes": rows},
        "\n".join(lines) or "The two cards have the same prices.",
        0,
    )


async def _activate(context: Context) -> Result:
    cards, given = RateCards(context.database), context.arguments
    start = now_ms() if given.start is None else _moment(given.start)
    await cards.activate(given.card, start, actor(), who(), given.reason)
    active = await _active(cards)
    text = f"{given.card} applies from {iso_time(start)} on. Active now: {active}. Running servers follow within 2 s."
    return {"rateCardId": given.card, "effectiveAt": iso_time(start), "active": active}, text, 0


def _moment(text: str) -> int:
    try:
        return read_time(text)
    except ValueError:
        raise ConfigError(
            "command line", "--from", f"{text!r} is not a time of the years 1 to 9999", "write 2026-12-01T00:00:00Z"
        ) from None


async def _show(context: Context) -> Result:
    cards, given = RateCards(context.database), context.arguments
    active = await _active(cards)
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
    lines += [f"  from {row['effectiveAt']}: {row['rateCardId']}" for row in listed["activations"]]
    return listed, "\n".join(lines), 0


async def _active(cards: RateCards) -> str:
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
    return "\n".join(lines)
