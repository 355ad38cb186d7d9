"""Errors in Stripe's words: status, type, code and param are what clients branch on."""

from typing import Any, Final

_DOCS: Final = "https://stripe.com/docs/error-codes/"


class StripeError(Exception):
    """An answer other than 200."""

    def __init__(
        self, status: int, kind: str, message: str, code: str | None = None, param: str | None = None, **extra: Any
    ) -> None:
        """Take the parts of the error object; `extra` are further fields, such as the payment_intent of a decline."""
        super().__init__(message)
        self.status = status
        self.started = True
        """The endpoint had begun to work: only then is an idempotent result saved."""
        self.error: dict[str, Any] = {"message": message, "type": kind} | extra
        if code is not None:
            self.error |= {"code": code, "doc_url": _DOCS + code.replace("_", "-")}
        if param is not None:
            self.error["param"] = param

    def not_started(self) -> "StripeError":
        """Mark the error as one from before the endpoint began."""
        self.started = False
        return self


def invalid(message: str, code: str | None = None, param: str | None = None, status: int = 400) -> StripeError:
    """Return an invalid_request_error."""
    return StripeError(status, "invalid_request_error", message, code, param)


def missing(param: str) -> StripeError:
    """Return the error of an absent parameter."""
    return invalid(f"Missing required param: {param}.", "parameter_missing", param)


def unknown_parameter(param: str) -> StripeError:
    """Return the error of a parameter that the endpoint does not have."""
    return invalid(f"Received unknown parameter: {param}", "parameter_unknown", param)


def no_such(kind: str, wanted: str, param: str | None = "id") -> StripeError:
    """Return the error of an absent object: 404 where the path names it, 400 where a parameter does."""
    status = 404 if param == "id" else 400
    return invalid(f"No such {kind}: '{wanted}'", "resource_missing", param, status)


def unauthorized(message: str) -> StripeError:
    """Return the error of a missing or a wrong key."""
    return StripeError(401, "invalid_request_error", message).not_started()


def idempotency(status: int, message: str, code: str | None = None) -> StripeError:
    """Return the error of an Idempotency-Key that cannot be used for this request, or not now."""
    return StripeError(status, "idempotency_error", message, code).not_started()


def card_error(message: str, code: str, decline_code: str | None, **extra: Any) -> StripeError:
    """Return a 402: the issuer refused."""
    if decline_code is not None:
        extra["decline_code"] = decline_code
    return StripeError(402, "card_error", message, code, None, **extra)
