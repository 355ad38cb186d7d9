"""A statement as the file that was asked for."""

from typing import Literal

from billing.accounting.statements import Statement
from config.settings import Seller
from proxy.customer_api.statement_csv import statement_csv


def statement_file(statement: Statement, form: Literal["csv", "pdf"], seller: Seller) -> tuple[bytes, str]:
    """Bytes and media type. Pure: the same statement is the same bytes, today and in a year."""
    if form == "csv":
        return statement_csv(statement), "text/csv"
    # reportlab takes a while to load: whoever wants the first PDF waits for it, not every process that starts
    from proxy.customer_api.statement_pdf import statement_pdf

    return statement_pdf(statement, seller), "application/pdf"
