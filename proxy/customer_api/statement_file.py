"""A statement as the file that was asked for."""

import logging
from pathlib import Path
from typing import Literal

from billing.accounting.statements import Statement
from config.settings import Seller
from proxy.customer_api.statement_csv import statement_csv

log = logging.getLogger("tollkeeper.statements")


def statement_file(statement: Statement, form: Literal["csv", "pdf"], seller: Seller) -> tuple[bytes, str]:
    """Bytes and media type: the same statement of the same seller is the same bytes, today and in a year."""
    if form == "csv":
        return statement_csv(statement), "text/csv"
    # reportlab takes a while to load: whoever wants the first PDF waits for it, not every process that starts
    from proxy.customer_api.statement_pdf import statement_pdf

    return statement_pdf(statement, seller, _read_logo(seller.logo_file)), "application/pdf"


def _read_logo(name: str) -> bytes:
    """Read the seller's logo; a statement does without one that cannot be read."""
    try:
        return Path(name).read_bytes() if name else b""
    except OSError as error:
        log.warning("seller.logo_file: %s cannot be read (%s): statements have no logo", name, type(error).__name__)
        return b""
