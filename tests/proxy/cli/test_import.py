"""`tollkeeper import`: customers of another gateway, all of a file or nothing, a second time nothing at all."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from proxy.cli.importing.rows import BadRows, read_customers
from tests.support import web
from tests.support.servers import Tollkeeper

OLD_KEY, OTHER_KEY = "sk-old-0123456789abcdefghij", "sk-old-9876543210zyxwvutsrq"
FILE = f"""\
account,name,key,key_sha256,usd
acme,Acme Ltd,{OLD_KEY},,12.50
acme,,,{hashlib.sha256(OTHER_KEY.encode()).hexdigest()},
globex,"Globex, Inc.",sk-old-globex-0123456789,,0
"""


@pytest.fixture
def shop(folder: Path) -> Tollkeeper:
    server = Tollkeeper(folder, {})
    server.cli("migrate")
    return server


def written(server: Tollkeeper, text: str) -> str:
    (server.folder / "customers.csv").write_text(text, encoding="utf-8")
    return "customers.csv"


def state(server: Tollkeeper) -> dict[str, Any]:
    accounts = server.cli("account", "list")["data"]
    return {
        row["name"]: (
            row["postedMillicredits"],
            sorted(key["hint"] for key in server.cli("key", "list", row["accountId"])["data"]),
        )
        for row in accounts
    }


def test_accounts_keys_and_balances_are_taken_over_once(shop: Tollkeeper) -> None:
    file = written(shop, FILE)
    tried = shop.cli("import", file, "--dry-run")
    assert (tried["newAccounts"], tried["newKeys"], tried["newBalances"], tried["grantedMillicredits"]) == (
        2,
        3,
        1,
        "12500000",
    )
    assert state(shop) == {}
    first = shop.cli("import", file, "--reason", "moved")
    assert {name: first[name] for name in tried if name != "dryRun"} == {
        name: tried[name] for name in tried if name != "dryRun"
    }
    after = state(shop)
    assert set(after) == {"Acme Ltd", "Globex, Inc."}
    assert after["Acme Ltd"][0] == "12500000"
    assert len(after["Acme Ltd"][1]) == 2
    again = shop.cli("import", file)
    assert (again["newAccounts"], again["newKeys"], again["newBalances"]) == (0, 0, 0)
    assert state(shop) == after
    assert shop.cli("reconcile")["ok"] is True
    assert shop.cli("audit", "verify")["rows"] == 6  # two accounts, three keys, one balance
    assert OLD_KEY.encode() not in b"".join(path.read_bytes() for path in (shop.folder / "var").iterdir())


def test_a_longer_file_adds_what_is_new(shop: Tollkeeper) -> None:
    shop.cli("import", written(shop, FILE))
    found = shop.cli("import", written(shop, FILE + "initech,,,,3\n"))
    assert (found["newAccounts"], found["newKeys"], found["grantedMillicredits"]) == (1, 0, "3000000")


def test_imported_keys_work_at_a_running_server_as_they_are(make_tollkeeper: Any) -> None:
    server: Tollkeeper = make_tollkeeper().start()
    server.cli("import", written(server, FILE))
    for key in (OLD_KEY, OTHER_KEY):
        answer = web.post(
            f"{server.url}/v1/chat/completions",
            headers={"Authorization": f"Bearer {key}"},
            json={"model": "gpt-6-luna", "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 20},
        )
        assert answer.status_code == 200, answer.text
        me = web.get(f"{server.url}/api/billing/me", headers={"Authorization": f"Bearer {key}"}).json()
        assert 12_000_000 < int(me["balanceMillicredits"]) < 12_500_000


def test_what_does_not_fit_is_said_with_every_line_and_nothing_is_done(shop: Tollkeeper) -> None:
    shop.cli("import", written(shop, FILE))
    before = state(shop)
    changed = FILE.replace("12.50", "13") + f"thief,,{OLD_KEY.replace('j', 'k')},,\nother,,{OLD_KEY},,\n"
    said = shop.cli("import", written(shop, changed), code=1)["error"]
    assert "line 5: this key is in line" not in said
    assert "line 6: this key is in line 2 already" in said
    changed = FILE.replace("12.50", "13") + "new,,,,5\n"
    assert (
        "line 2: 'acme' was imported before with another balance"
        in shop.cli("import", written(shop, changed), code=1)["error"]
    )
    stolen = f"account,key\nthief,{OLD_KEY}\n"
    assert "line 2: this key is another account's here" in shop.cli("import", written(shop, stolen), code=1)["error"]
    assert state(shop) == before


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("name,key\nx,y\n", ["line 1: the first line names the columns, and one of them is `account`"]),
        ("account,kye\na,b\n", ["line 1: there is no column 'kye'"]),
        ("account,account\na,b\n", ["line 1: a column stands twice"]),
        ("account\n", ["line 1: there are no rows"]),
        ("", ["line 1: the first line names"]),
        ("account,usd\na,1\na,2,3\n", ["line 3: it does not have as many fields"]),
        ("account,usd\na,1\na,2\n", ["line 3: 'a' has another balance in line 2"]),
        ("account,name\na,A\na,B\n", ["line 3: 'a' has another `name` in line 2"]),
        ("account,key\na,short\n", ["line 2: `key` must be 20 to 300 visible"]),
        ("account,key_sha256\na,abc\n", ["line 2: `key_sha256` must be the 64 hex digits"]),
        (f"account,key,key_sha256\na,{OLD_KEY},{'0' * 64}\n", ["line 2: it has both `key` and `key_sha256`"]),
        (f"account,key\na,{OLD_KEY}\nb,{OLD_KEY}\n", ["line 3: this key is in line 2 already"]),
        ("account,usd\na,-1\nb,1e3\nc,0.0000001\nd,nan\n", [f"line {line}: `usd`" for line in (2, 3, 4, 5)]),
        ("account,credits\na,0.0001\nb,-5\n", ["line 2: `credits`", "line 3: a balance is 0 to"]),
        ("account,credits,usd\na,1,1\n", ["line 2: it has both `credits` and `usd`"]),
        ("account\n\n \n", ["line 3: `account` must be"]),
        ('account,name\n"a\nb",x\n', ["line 3: `account` must be"]),
        ('account,name\na,"x\n', ["is no CSV"]),
    ],
)
def test_every_complaint_has_its_line(text: str, complaints: list[str]) -> None:
    with pytest.raises(BadRows) as caught:
        read_customers(text.splitlines(keepends=True))
    assert len(caught.value.complaints) == len(complaints)
    for found, expected in zip(caught.value.complaints, complaints, strict=True):
        assert expected in found


def test_dollars_and_credits_are_exact() -> None:
    rows = read_customers(
        "account,usd,credits\na,0.000001,\nb,999999.999999,\nc,,0.001\nd,0,\n".splitlines(keepends=True)
    )
    assert [row.millicredits for row in rows] == [1, 999_999_999_999, 1, 0]


def test_a_file_that_is_none_is_one_line(shop: Tollkeeper) -> None:
    assert shop.run("import", "none.csv").returncode == 2
    (shop.folder / "b.csv").write_bytes(b"account\n\xff\xfe\n")
    assert "name a UTF-8 CSV" in shop.run("import", "b.csv").stderr
