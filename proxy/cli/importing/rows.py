"""A CSV of customers: accounts, keys and balances, checked whole before anything is done. Pure."""

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from billing.ledger.accounts import HINT_LENGTH, hash_key
from billing.ledger.records.plain_text import is_plain_text
from billing.money.amounts import MoneyError, parse_credits

COLUMNS = ("account", "name", "key", "key_sha256", "credits", "usd")
LONGEST_ACCOUNT = 60
LONGEST_NAME = 200
MOST_MILLICREDITS = 1_000_000_000_000
MOST_ROWS = 100_000
KEY = re.compile(r"[!-~]{20,300}")
HASH = re.compile(r"[0-9a-f]{64}")
USD = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,6}))?")


class BadRows(Exception):
    """A file that cannot be imported; nothing was done. `complaints`: each with its line."""

    def __init__(self, complaints: list[str]) -> None:
        """Take one complaint or more."""
        super().__init__("\n".join(complaints))
        self.complaints = complaints


@dataclass(slots=True)
class ImportedKey:
    """A key, of which only the hash is known from here on."""

    line: int
    sha256: str
    hint: str


@dataclass(slots=True)
class ImportedCustomer:
    """All that the file says of one account; `millicredits` None: nothing about money."""

    line: int
    account: str
    name: str
    millicredits: int | None = None
    keys: list[ImportedKey] = field(default_factory=list)


def read_customers(lines: Iterable[str]) -> list[ImportedCustomer]:
    """Return the customers in the order of the file. Raises BadRows with every complaint."""
    reader = csv.DictReader(lines, strict=True)
    complaints, customers, owners = list[str](), dict[str, ImportedCustomer](), dict[str, str]()
    try:
        complaints += _check_head(list(reader.fieldnames or []))
        for number, row in enumerate(reader) if not complaints else ():
            if number == MOST_ROWS:
                complaints.append(f"line {reader.line_num}: more than {MOST_ROWS} rows: split the file")
                break
            complaints += [f"line {reader.line_num}: {what}" for what in _take(row, reader.line_num, customers, owners)]
    except csv.Error as error:
        complaints.append(f"line {reader.line_num}: is no CSV ({error})")
    if not complaints and not customers:
        complaints.append("line 1: there are no rows")
    if complaints:
        raise BadRows(complaints)
    return list(customers.values())


def _check_head(names: list[str]) -> Iterator[str]:
    if "account" not in names:
        yield f"line 1: the first line names the columns, and one of them is `account`; all are {', '.join(COLUMNS)}"
    for name in names:
        if name not in COLUMNS:
            yield f"line 1: there is no column {name[:40]!r}; the columns are {', '.join(COLUMNS)}"
    if len(names) != len(set(names)):
        yield "line 1: a column stands twice"


def _take(
    row: dict[str, str | None], line: int, customers: dict[str, ImportedCustomer], owners: dict[str, str]
) -> Iterator[str]:
    """Add a row to its customer; yield what is wrong with it."""
    if None in row or None in row.values():
        yield "it does not have as many fields as the first line"
        return
    said = {name: (value or "").strip() for name, value in row.items()}
    account = said["account"]
    if not 0 < len(account) <= LONGEST_ACCOUNT or not account.isprintable():
        yield f"`account` must be 1 to {LONGEST_ACCOUNT} printable characters"
        return
    customer = customers.setdefault(account, ImportedCustomer(line, account, said.get("name") or account))
    name = said.get("name", "")
    if name and not is_plain_text(name, LONGEST_NAME):
        yield f"`name` must be 1 to {LONGEST_NAME} printable characters"
    elif name and name != customer.name:
        yield f"{account!r} has another `name` in line {customer.line}"
    yield from _take_key(said, line, customer, owners)
    yield from _take_balance(said, customer)


def _take_key(said: dict[str, str], line: int, customer: ImportedCustomer, owners: dict[str, str]) -> Iterator[str]:
    key, sha256 = said.get("key", ""), said.get("key_sha256", "").lower()
    if not key and not sha256:
        return
    if key and sha256:
        yield "it has both `key` and `key_sha256`: one is enough"
    elif key and not KEY.fullmatch(key):
        yield "`key` must be 20 to 300 visible ASCII characters: a shorter one could be guessed"
    elif sha256 and not HASH.fullmatch(sha256):
        yield "`key_sha256` must be the 64 hex digits of the key's SHA-256"
    else:
        digest = sha256 or hash_key(key)
        hint = f"{key[:HINT_LENGTH]}…{key[-4:]}" if key else f"#{digest[:HINT_LENGTH]}…"
        if digest in owners:
            yield f"this key is in line {owners[digest]} already"
            return
        owners[digest] = str(line)
        customer.keys.append(ImportedKey(line, digest, hint))


def _take_balance(said: dict[str, str], customer: ImportedCustomer) -> Iterator[str]:
    in_credits, in_usd = said.get("credits", ""), said.get("usd", "")
    if in_credits and in_usd:
        yield "it has both `credits` and `usd`: one is enough"
        return
    if not in_credits and not in_usd:
        return
    try:
        amount = int(parse_credits(in_credits)) if in_credits else _usd(in_usd)
    except MoneyError as error:
        yield f"`{'credits' if in_credits else 'usd'}`: {error}"
        return
    if not 0 <= amount <= MOST_MILLICREDITS:
        yield f"a balance is 0 to {MOST_MILLICREDITS // 1_000} credits"
    elif customer.millicredits is not None and customer.millicredits != amount:
        yield f"{customer.account!r} has another balance in line {customer.line}: an account has one"
    else:
        customer.millicredits = amount


def _usd(text: str) -> int:
    """Read dollars as millicredits, of which one is a millionth of a dollar. Raises MoneyError."""
    found = USD.fullmatch(text)
    if not found:
        raise MoneyError("is not an amount of dollars such as 12.50, with at most 6 decimals")
    return int(found[1]) * 1_000_000 + int((found[2] or "").ljust(6, "0"))
