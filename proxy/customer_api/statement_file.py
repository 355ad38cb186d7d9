"""A statement as the file that was asked for."""

from typing import Literal

from billing.accounting.statements import Statement
from config.app import read_logo
from config.errors import ConfigError
from config.settings import App, Seller
from proxy.customer_api.statement_csv import statement_csv


def statement_file(statement: Statement, form: Literal["csv", "pdf"], seller: Seller, app: App) -> tuple[bytes, str]:
    """Return bytes and media type: the same statement, seller and app are the same bytes, today and in a year."""
    if form == "csv":
        return statement_csv(statement), "text/csv"
    # reportlab takes a while to load: whoever wants the first PDF waits for it, not every process that starts
    from proxy.customer_api.statement_pdf import statement_pdf

    try:
        logo = read_logo(app)
    except ConfigError:  # it was good when it was configured; figures are wanted without it as well
        logo = None
    return statement_pdf(statement, seller, app, logo), "application/pdf"
