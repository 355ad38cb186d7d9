"""A form that was refused, as the page shows it again: the words at their field, what was typed still in it. Pure."""

from collections.abc import Mapping
from typing import NamedTuple

from proxy.web.rejections import Rejection

AT_THE_FORM = (400, 409)
"""Status codes of refusals that whoever sent the form can do something about."""
FIELDS: Mapping[str, str] = {
    "thresholdMillicredits": "threshold",
    "monthlyCeilingCents": "ceiling",
    "packageCode": "package",
    "spendLimitCredits": "limit",
    "budgets": "daily",
}
"""Names that the API has for fields → those of the forms, where they differ."""
SECRET = "csrf"  # noqa: S105 - the name of a field


class RefusedForm(NamedTuple):
    """The form, by its path and the key it is about; the field that the words are about ("": the form as a whole)."""

    form: str
    field: str
    text: str
    typed: Mapping[str, str]

    def is_of(self, form: str) -> bool:
        """Tell whether it was this form."""
        return self.form == form

    def said(self, form: str, field: str) -> str:
        """Return the words to stand at a field of a form; "" where nothing is wrong with it."""
        return self.text if (self.form, self.field) == (form, field) else ""

    def value(self, form: str, field: str, otherwise: str) -> str:
        """Return what was typed into a field; `otherwise` in a form that was not refused."""
        return self.typed.get(field, "") if self.form == form else otherwise


NOT_REFUSED = RefusedForm("", "", "", {})


def refused_form(path: str, refusal: Rejection, typed: Mapping[str, str]) -> RefusedForm:
    """Return what the page shows of a refusal. `typed`: the fields as they were sent."""
    form = f"{path}:{typed['key']}" if "key" in typed else path
    field = FIELDS.get(refusal.param or "", refusal.param or "")
    kept = {name: text for name, text in typed.items() if name != SECRET}
    return RefusedForm(form, field, refusal.message, kept)
