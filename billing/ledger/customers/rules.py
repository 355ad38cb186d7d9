"""Details and rules of an API key as they may be: its name, tags, globs of models, budgets. Pure."""

from collections.abc import Sequence

from billing.ledger.accounts import KeyBudget, KeyDetails, KeyRules
from billing.money.errors import InvalidDetails
from billing.money.spend_periods import PERIODS

LONGEST_NAME, LONGEST_TAG, MOST_TAGS = 100, 50, 20
LONGEST_REFERENCE, LONGEST_END_USER = 80, 127
MOST_BUDGETS, MOST_MODELS, LONGEST_MODEL = 10, 100, 120
LONGEST_GRACE_MS = 30 * 86_400_000


def checked_key(details: KeyDetails) -> KeyDetails:
    """Return what a key is called, as it is kept. Raises InvalidDetails."""
    name = details.name.strip() if details.name else None
    if name is not None and not _is_text(name, LONGEST_NAME):
        raise InvalidDetails("name", f"be 1 to {LONGEST_NAME} printable characters")
    tags = tuple(dict.fromkeys(tag.strip() for tag in details.tags))
    if len(tags) > MOST_TAGS or not all(_is_text(tag, LONGEST_TAG) for tag in tags):
        raise InvalidDetails("tags", f"be at most {MOST_TAGS}, each of 1 to {LONGEST_TAG} printable characters")
    if details.reference is not None and not _is_text(details.reference, LONGEST_REFERENCE):
        raise InvalidDetails("reference", f"be 1 to {LONGEST_REFERENCE} printable characters")
    return KeyDetails(name or None, tags, details.reference)


def check_rules(rules: KeyRules) -> None:
    """Raise InvalidDetails unless these rules can be kept and held to."""
    if rules.models is not None:
        _check_models("models", rules.models)
    if rules.spend_limit is not None and rules.spend_limit < 0:
        raise InvalidDetails("spendLimitCredits", "not be negative")
    _check_budgets(rules.budgets, rules.all_budgets)


def checked_end_user(name: str) -> str:
    """Return an end user's name as it is kept. Raises InvalidDetails.

    A longer one is cut where requests name it, and so can never be taken for one that is kept.
    """
    if not _is_text(name, LONGEST_END_USER) or name != name.strip():
        raise InvalidDetails("endUser", f"be 1 to {LONGEST_END_USER} printable characters, no blanks around them")
    return name


def check_end_user_budgets(budgets: Sequence[KeyBudget]) -> None:
    """Raise InvalidDetails unless an end user can be held to these: of a day, a week or a month."""
    _check_budgets(budgets, budgets)
    if any(budget.period == "total" for budget in budgets):
        raise InvalidDetails("budgets", "each be of a day, a week or a month: what ends for good is a wallet")


def _check_budgets(budgets: Sequence[KeyBudget], all_of_them: Sequence[KeyBudget]) -> None:
    if len(budgets) > MOST_BUDGETS:
        raise InvalidDetails("budgets", f"be at most {MOST_BUDGETS}")
    for budget in budgets:
        _check_budget(budget)
    scopes = [budget.subject for budget in all_of_them]
    if len(set(scopes)) < len(scopes):
        raise InvalidDetails("budgets", "name each period and models once (the spend limit is one of all models)")


def _check_budget(budget: KeyBudget) -> None:
    if budget.period not in PERIODS:
        raise InvalidDetails("budgets", f"each have a period of {', '.join(PERIODS)}")
    if budget.limit < 0:
        raise InvalidDetails("budgets", "not be negative")
    if budget.models is not None:
        if not budget.models:
            raise InvalidDetails("budgets", "each name models, or leave `models` out")
        _check_models("budgets", budget.models)


def _check_models(field: str, models: Sequence[str]) -> None:
    if len(models) > MOST_MODELS or not all(_is_text(model, LONGEST_MODEL) for model in models):
        raise InvalidDetails(field, f"name at most {MOST_MODELS} models, each of 1 to {LONGEST_MODEL} characters")


def _is_text(text: str, longest: int) -> bool:
    return 0 < len(text) <= longest and text.isprintable()
