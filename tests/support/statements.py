"""Rows of a statement's CSV."""

import csv
import io

from billing.accounting.statements import (
    Statement,
)
from proxy.customer_api.statement_csv import statement_csv


def rows_of(statement: Statement) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(statement_csv(statement).decode())))
