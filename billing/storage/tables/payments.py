"""The SQL tables of money coming in, beside those of tables.py (same metadata, same units).

Amounts are millicredits unless a name ends in `_cents`; times are Unix milliseconds, except Stripe's own `created`
(seconds).
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

from billing.storage.tables.core import metadata

AUTO_IN_FLIGHT = "origin = 'auto' AND state IN ('created', 'open', 'processing')"

purchases = Table(
    "purchases",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False),
    Column("origin", String(12), nullable=False),
    Column("package_code", String(32), nullable=False),
    Column("currency", String(3), nullable=False),
    Column("price_cents", BigInteger, nullable=False),
    Column("paid_millicredits", BigInteger, nullable=False),
    Column("bonus_millicredits", BigInteger, nullable=False),
    Column("livemode", Boolean, nullable=False),
    Column("state", String(12), nullable=False),
    Column("problem", Text, nullable=False, server_default=""),
    Column("idempotency_key", String(80), nullable=False, unique=True),
    Column("save_method", Boolean, nullable=False),
    Column("customer_id", String(255), nullable=False, server_default=""),
    Column("session_id", String(255), unique=True),
    Column("payment_intent_id", String(255), unique=True),
    Column("payment_method_id", String(255), nullable=False, server_default=""),
    Column("url", Text, nullable=False, server_default=""),
    Column("charge_id", String(255), nullable=False, server_default=""),
    Column("receipt_url", Text, nullable=False, server_default=""),
    Column("total_cents", BigInteger, nullable=False, server_default="0"),
    Column("tax_cents", BigInteger, nullable=False, server_default="0"),
    Column("fee_booked", Boolean, nullable=False, server_default=false()),
    Column("revision", Integer, nullable=False, server_default="0"),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("credited_at", BigInteger),
    Column("bonus_days", Integer),
    Column("bonus_expired", BigInteger, nullable=False, server_default="0"),
    Column("invoice_id", String(255), nullable=False, server_default=""),
    Column("tax_calculation", String(255), nullable=False, server_default=""),
    Column("due_tax_cents", BigInteger, nullable=False, server_default="0"),
    CheckConstraint("price_cents > 0 AND paid_millicredits > 0 AND bonus_millicredits >= 0", name="amounts_positive"),
    CheckConstraint("tax_cents >= 0 AND total_cents >= tax_cents", name="total_covers_tax"),
    Index("ix_purchases_account", "account_id", "created_at", "id"),
    Index("ix_purchases_state", "state", "updated_at"),
    Index("ix_purchases_created", "created_at", "id"),
    Index(
        "uq_purchases_auto_in_flight",
        "account_id",
        unique=True,
        sqlite_where=text(AUTO_IN_FLIGHT),
        postgresql_where=text(AUTO_IN_FLIGHT),
    ),
)
"""One row a purchase, committed before Stripe hears of it.

The credits of a purchase come from here and nowhere else. `bonus_days`: after which what is left of its bonus expires
(NULL: never); `bonus_expired`: millicredits of it that did. `invoice_id`: Stripe's, of a payment page; `due_tax_cents`:
of a payment by itself, what `tax_calculation` at Stripe says comes on top.
"""

claims = Table(
    "claims",
    metadata,
    Column("id", String(255), primary_key=True),
    Column("purchase_id", String(40), ForeignKey("purchases.id"), nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("kind", String(8), nullable=False),
    Column("amount_cents", BigInteger, nullable=False),
    Column("status", String(40), nullable=False),
    Column("counts", Boolean, nullable=False),
    Column("lost", Boolean, nullable=False),
    Column("reason", String(80), nullable=False, server_default=""),
    Column("version", Integer, nullable=False, server_default="0"),
    Column("booked_paid", BigInteger, nullable=False, server_default="0"),
    Column("booked_bonus", BigInteger, nullable=False, server_default="0"),
    Column("booked_tax", BigInteger, nullable=False, server_default="0"),
    Column("booked_loss", BigInteger, nullable=False, server_default="0"),
    Column("withdrawn", BigInteger, nullable=False, server_default="0"),
    Column("cleared", BigInteger, nullable=False, server_default="0"),
    Column("movements", Text, nullable=False, server_default="[]"),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    UniqueConstraint("purchase_id", "ordinal"),
    CheckConstraint("kind IN ('refund', 'dispute')", name="kind_known"),
    CheckConstraint("amount_cents >= 0", name="amount_not_negative"),
    Index("ix_claims_updated", "updated_at"),
)
"""Refunds and disputes of purchases, in the order in which we heard of them, and what of each is booked.

`movements`: JSON of what Stripe moved for a dispute (claim_store.DisputeMovement), booked as soon as its purchase is
credited.
"""

refund_askings = Table(
    "refund_askings",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("purchase_id", String(40), ForeignKey("purchases.id"), nullable=False),
    Column("reference", String(255), nullable=False, unique=True),
    Column("amount_cents", BigInteger, nullable=False),
    Column("whole", Boolean, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("state", String(8), nullable=False),
    Column("refund_id", String(255), nullable=False, server_default=""),
    Column("problem", Text, nullable=False, server_default=""),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    CheckConstraint("state IN ('asked', 'made', 'refused')", name="state_known"),
    CheckConstraint("amount_cents > 0", name="amount_positive"),
    Index("ix_refund_askings_purchase", "purchase_id", "state"),
)
"""Refunds that were asked for here, each committed before Stripe hears of it; `asked`: no answer of Stripe's is kept.

`whole`: asked for as all that is left; `attempt`: part of the idempotency key, another when Stripe keeps a failure.
"""

stripe_inbox = Table(
    "stripe_inbox",
    metadata,
    Column("event_id", String(255), primary_key=True),
    Column("type", String(120), nullable=False),
    Column("object_id", String(255), nullable=False),
    Column("api_version", String(40), nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("source", String(8), nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("payload", Text, nullable=False),
    Column("state", String(8), nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_at", BigInteger, nullable=False),
    Column("handled_at", BigInteger),
    Column("replayed_at", BigInteger),
    Column("outcome", Text, nullable=False, server_default=""),
    CheckConstraint("state IN ('pending', 'parked', 'done', 'ignored')", name="state_known"),
    Index("ix_stripe_inbox_state", "state", "next_at"),
)
"""Every event Stripe told us of, by its id. Rows are kept for ever: an event may be sent again after any time.

`replayed_at`: when one that had been handled was asked to be handled again, last.
"""

stripe_customers = Table(
    "stripe_customers",
    metadata,
    Column("account_id", String(40), ForeignKey("accounts.id"), primary_key=True),
    Column("customer_id", String(255), nullable=False, unique=True),
    Column("payment_method_id", String(255), nullable=False, server_default=""),
    Column("consented_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("method_brand", String(40), nullable=False, server_default=""),
    Column("method_last4", String(8), nullable=False, server_default=""),
)

auto_recharges = Table(
    "auto_recharges",
    metadata,
    Column("account_id", String(40), ForeignKey("accounts.id"), primary_key=True),
    Column("enabled", Boolean, nullable=False),
    Column("threshold_millicredits", BigInteger, nullable=False),
    Column("package_code", String(32), nullable=False),
    Column("monthly_ceiling_cents", BigInteger, nullable=False),
    Column("below", Boolean, nullable=False),
    Column("crossing", Integer, nullable=False, server_default="0"),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("next_try_at", BigInteger),
    Column("state", String(16), nullable=False),
    Column("message", Text, nullable=False, server_default=""),
    Column("action_url", Text, nullable=False, server_default=""),
    Column("purchase_id", String(40)),
    Column("updated_at", BigInteger, nullable=False),
    Column("agreed_price_cents", BigInteger),
    Column("agreed_millicredits", BigInteger),
    Column("agreed_tax", Boolean, nullable=False, server_default=false()),
    CheckConstraint("threshold_millicredits > 0 AND monthly_ceiling_cents > 0", name="amounts_positive"),
)
"""`below` and `crossing`: a balance that falls under the threshold is one crossing until it was above again.

`purchase_id`: in flight. `agreed_*`: what one payment costs and brings, as the account consented to it (NULL: before
this was kept, and nothing tells), and whether tax comes on top.
"""

balance_marks = Table(
    "balance_marks",
    metadata,
    Column("account_id", String(40), ForeignKey("accounts.id"), primary_key=True),
    Column("threshold_millicredits", BigInteger),
    Column("below", Boolean, nullable=False),
    Column("crossing", Integer, nullable=False, server_default="0"),
)
"""Low-balance notices: an account's own threshold (NULL: the configured one), and on which side of it it was last seen.

"""

notices = Table(
    "notices",
    metadata,
    Column("id", String(120), primary_key=True),
    Column("account_id", String(40), ForeignKey("accounts.id"), nullable=False),
    Column("kind", String(40), nullable=False),
    Column("payload", Text, nullable=False),
    Column("state", String(8), nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_at", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("sent_at", BigInteger),
    Column("last_error", Text, nullable=False, server_default=""),
    Column("endpoint_id", String(24), nullable=False, server_default=""),
    CheckConstraint("state IN ('pending', 'sent', 'dead')", name="state_known"),
    Index("ix_notices_state", "state", "next_at"),
    Index("ix_notices_account", "account_id", "created_at"),
    Index("ix_notices_waiting", "endpoint_id", "state", "account_id", "created_at"),
)
"""Events on their way, one row for each listener. `endpoint_id` "": the URL of the configuration. The id names what
happened ("low_balance:acct_1:3"), and behind an @ the endpoint; an account's are sent in the order of `created_at`.
"""

sweep_marks = Table(
    "sweep_marks",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

dismissals = Table(
    "dismissals",
    metadata,
    Column("subject", String(255), primary_key=True),
    Column("check", String(80), primary_key=True),
    Column("expected", BigInteger, nullable=False),
    Column("found", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", String(120), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
"""What a person has looked at. `check` "": an object at Stripe that is none of ours, whatever becomes of it; else a
finding of that check with exactly these figures.
"""

installation = Table(
    "installation",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("id", String(40), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
"""One row: the mark by which this installation knows its own objects at Stripe."""
