"""Rate cards to change: the shipped one under another name."""

import copy
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from billing.money.pricing import load_catalogue
from tests.support.servers import Tollkeeper

SHIPPED = load_catalogue()


def card(name: str, **changes: Any) -> dict[str, Any]:
    """The shipped card under another name, with changes at a dotted path."""
    document = copy.deepcopy(SHIPPED)
    document["catalogueId"] = name
    for path, value in changes.items():
        *inside, last = path.split("/")
        place = document
        for step in inside:
            place = place[step]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return document


def day(plus: int) -> str:
    """The day (UTC) so many days from now."""
    return (datetime.now(UTC).date() + timedelta(plus)).isoformat()


def activate_ends(server: Tollkeeper, dated: str = SHIPPED["effectiveFrom"], **ends: str) -> str:
    """Activate the shipped card, of another day, with these ends of models (gpt_6_luna="2026-12-01") and no others. Its id."""
    named = {name.replace("-", "_").replace(".", "_"): name for name in SHIPPED["models"]}
    models = {name: {**row, "ends": None} for name, row in SHIPPED["models"].items()}
    for name, last in ends.items():
        models[named[name]]["ends"] = last
    card_id = f"ends-{len(server.cli('rates', 'show')['cards'])}"
    path = server.folder / f"{card_id}.json"
    path.write_text(json.dumps({**SHIPPED, "catalogueId": card_id, "effectiveFrom": dated, "models": models}))
    server.cli("rates", "import", str(path))
    server.cli("rates", "activate", card_id)
    return card_id
