"""The shape of proxy.toml: frozen structs, unknown keys refused. Pure: no file, no environment.

Sections marked *restart* are read once at start; the others are safe to swap while running.
Every duration is in the unit its name ends with; every size is in bytes; money is a string of USD
or credits so that no float is ever involved.
"""

from typing import Annotated, Literal

import msgspec

ENV_PREFIX = "TOLLKEEPER_"

Positive = Annotated[int, msgspec.Meta(gt=0)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0, le=31_536_000)]
Decimalish = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$")]

HostedTool = Literal[
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
    "file_search",
    "code_interpreter",
    "image_generation",
    "mcp",
    "computer",
    "computer_use_preview",
    "programmatic_tool_calling",
]
HeaderText = Annotated[str, msgspec.Meta(pattern=r"^[!-~]{0,120}$")]
PersonsRole = Literal["viewer", "support", "finance", "ops", "owner"]
Color = Annotated[str, msgspec.Meta(pattern=r"^(#[0-9a-fA-F]{6})?$")]
Dialect = Literal["openai", "azure", "generic"]
ServiceTier = Literal["default", "flex", "priority", "ultrafast"]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every section: immutable, keyword only, no unknown keys."""


class Listen(Section, frozen=True):
    """*restart* — listeners, and how much of one connection we tolerate."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8080
    side_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    admin_host: str = "127.0.0.1"
    admin_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    trusted_proxies: tuple[str, ...] = ()
    max_failures_per_minute: NotNegative = 300
    workers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1
    max_connections: Positive = 4096
    max_connections_per_address: NotNegative = 1024
    max_sockets_per_key: NotNegative = 100
    max_sockets_per_address: NotNegative = 400
    socket_idle_seconds: NotNegative = 900
    max_header_bytes: Positive = 32_768
    max_body_bytes: Positive = 20_971_520
    max_upload_bytes: Positive = 67_174_400
    max_buffered_bytes: Positive = 536_870_912
    header_timeout_seconds: PositiveSeconds = 10.0
    body_timeout_seconds: PositiveSeconds = 30.0
    keepalive_seconds: Positive = 75
    drain_seconds: Positive = 30


class Upstream(Section, frozen=True):
    """*restart* — the OpenAI API we forward to. The key comes from OPENAI_API_KEY or `api_key_file`."""

    base_url: str = "https://api.openai.com/v1"
    api_key_file: str = ""
    ca_file: str = ""
    max_connections: Positive = 4096
    first_byte_timeout_seconds: PositiveSeconds = 600.0
    idle_timeout_seconds: PositiveSeconds = 120.0
    total_timeout_seconds: PositiveSeconds = 3600.0


class UpstreamEntry(Section, frozen=True):
    """One of several upstreams. Its connections have the bounds of [upstream]; see config/upstreams.py."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
    base_url: str
    api_key_file: str = ""
    api_key_variable: Annotated[str, msgspec.Meta(pattern=r"^([A-Z][A-Z0-9_]{0,60})?$")] = ""
    organization: HeaderText = ""
    project: HeaderText = ""
    models: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("*",)
    weight: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 100
    region: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{0,16}$")] = ""
    admin_key_file: str = ""
    price_adjustment: Decimalish = "1"
    rate_card: str = ""
    dialect: Dialect = "openai"
    deployments: dict[str, str] = {}
    service_tier: bool | None = None
    store: bool | None = None
    include_usage: bool | None = None
    draining: bool = False


class Failover(Section, frozen=True):
    """Trying another upstream, before a byte was shown."""

    tries: Annotated[int, msgspec.Meta(ge=1, le=10)] = 3
    seconds: PositiveSeconds = 120.0
    first_byte_seconds: PositiveSeconds = 30.0
    show_upstream: bool = False


class DatabaseSettings(Section, frozen=True):
    """*restart* — the SQL ledger."""

    url: str = "sqlite+aiosqlite:///var/tollkeeper.db"
    replica_url: str = ""
    pool_size: Positive = 5
    timeout_seconds: PositiveSeconds = 5.0


class Redis(Section, frozen=True):
    """*restart* — the shared balance store. An empty `url` selects the embedded store (one process)."""

    url: str = ""
    timeout_seconds: PositiveSeconds = 0.8
    require_aof: bool = True


class Embedded(Section, frozen=True):
    """*restart* — the one-process balance store's journal file."""

    path: str = "var/embedded.db"


class Journal(Section, frozen=True):
    """*restart* — bounds of what may wait for the ledger before nothing more is served."""

    max_pending: Positive = 200_000
    max_lag_seconds: Positive = 3600


class Billing(Section, frozen=True):
    """Goods, prices and switches. config/flags.py has the keys that `tollkeeper flags` may override."""

    purchase_enabled: bool = True
    charging_enabled: bool = True
    charging_disabled_mode: Literal["free", "block"] = "block"
    auto_recharge: bool = False
    rounding_mode: Literal["exact", "ceil"] = "exact"
    markup: Decimalish = "1"
    model_allowlist: tuple[str, ...] = ("*",)
    extended_models: tuple[str, ...] = ()
    service_tier: ServiceTier = "default"
    allowed_service_tiers: tuple[ServiceTier, ...] = ("default", "flex", "priority")
    allowed_tools: tuple[HostedTool, ...] = (
        "web_search",
        "web_search_preview",
        "file_search",
        "image_generation",
        "programmatic_tool_calling",
    )
    allow_store: bool = True
    allow_background: bool = True


class Storage(Section, frozen=True):
    """Bounds of what customers keep in the upstream account: conversations, files, vector stores, responses."""

    keep_days: NotNegative = 0
    grace_days: NotNegative = 7
    max_objects: Positive = 10_000
    max_bytes: Positive = 1_073_741_824


class Purchases(Section, frozen=True):
    """Buying: the page for it, and the most that is bought for a customer who is away."""

    top_up_url: str = "/credits"
    auto_recharge_monthly_usd: Decimalish = "1000"
    max_auto_recharges_per_hour: Positive = 6
    amount_min_usd: Decimalish = "0"
    amount_max_usd: Decimalish = "0"
    usd_per_1000_credits: Decimalish = "1"


class Credits(Section, frozen=True):
    """Credits that are given: by rule to new accounts, and for a time."""

    welcome_credits: Decimalish = "0"
    welcome_days: Annotated[int, msgspec.Meta(ge=0, le=3_650)] = 0
    announce_expiry_days: Annotated[int, msgspec.Meta(ge=0, le=365)] = 7


class Seller(Section, frozen=True):
    """The company that sells the credits, as statements name it."""

    name: str = ""
    address: tuple[str, ...] = ()
    tax_id: str = ""


class App(Section, frozen=True):
    """The operator's own product, as customers know it: on their pages, in the 402, at the foot of statements."""

    name: Annotated[str, msgspec.Meta(max_length=60)] = ""
    url: str = ""
    logo_file: str = ""
    color: Color = ""
    dark_color: Color = ""
    support_url: str = ""
    terms_url: str = ""
    privacy_url: str = ""


class Holds(Section, frozen=True):
    """Bounds of a hold where the request names none of its own, and how far they may be lowered."""

    default_max_output_tokens: NotNegative = 0
    min_output_tokens: Positive = 16
    realtime_max_output_tokens: Positive = 4_096
    realtime_call_max_input_tokens: Positive = 16_000
    max_tool_calls: Annotated[int, msgspec.Meta(ge=1, le=128)] = 4
    in_flight_wait_seconds: Annotated[int, msgspec.Meta(ge=0, le=30)] = 2


class Metering(Section, frozen=True):
    """Answers on their way: what is said while nothing comes, and charging for those that do not reach their end."""

    on_disconnect: Literal["count", "read_on"] = "count"
    read_on_seconds: Positive = 120
    read_on_output_tokens: Positive = 200_000
    zero_completion_insurance: bool = True
    keepalive_comment_seconds: Annotated[int, msgspec.Meta(ge=0, le=600)] = 15


class Limits(Section, frozen=True):
    """Per key, used where a key names none of its own; for what is free, beside its own. 0 = unlimited."""

    requests_per_minute: NotNegative = 0
    tokens_per_minute: NotNegative = 0
    concurrency: NotNegative = 0
    free_requests_per_minute: NotNegative = 3_000


class Package(Section, frozen=True):
    """A credit package on sale: USD in, credits out (paid part plus bonus per cent; the bonus may expire)."""

    code: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9-]{1,32}$")]
    usd: Decimalish
    bonus_percent: Decimalish = "0"
    bonus_expires_days: Annotated[int, msgspec.Meta(ge=0, le=3_650)] = 0


class Stripe(Section, frozen=True):
    """*restart* — money in. The keys come from STRIPE_API_KEY and STRIPE_WEBHOOK_SECRET, or these files."""

    api_key_file: str = ""
    webhook_secret_file: str = ""
    livemode: bool = False
    success_url: str = ""
    cancel_url: str = ""
    api_base: str = ""
    checkout_domain: Annotated[str, msgspec.Meta(pattern=r"^([a-z0-9-]+(\.[a-z0-9-]+)+)?$")] = ""
    automatic_tax: bool = False
    tax_code: Annotated[str, msgspec.Meta(pattern=r"^(txcd_[0-9]{8})?$")] = ""
    invoices: bool = False
    collect_company: bool = False
    collect_address: bool = False
    max_checkouts_per_hour: NotNegative = 20
    block_after_lost_disputes: NotNegative = 0


class Notices(Section, frozen=True):
    """*restart* — words to the operator's own app. Signed with NOTICES_SECRET, or the secret in this file."""

    url: str = ""
    secret_file: str = ""
    kinds: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("*",)
    low_balance_credits: Decimalish = "0"
    low_balance_percents: tuple[Annotated[int, msgspec.Meta(ge=1, le=99)], ...] = ()
    private_endpoints: bool = False


class Portal(Section, frozen=True):
    """*restart* — the Credits page. Links to it are made with PORTAL_SERVICE_KEY, or the key in this file."""

    public_url: str = ""
    service_key_file: str = ""


class Rollout(Section, frozen=True):
    """Accounts that are metered already.

    One that `percent` has let in stays in while `percent` grows (docs/adr/0035).
    """

    percent: Annotated[int, msgspec.Meta(ge=0, le=100)] = 100
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    outside: Literal["free", "block"] = "free"


class Cors(Section, frozen=True):
    """Web origins that may read the side API from a browser. None by default."""

    allowed_origins: tuple[Annotated[str, msgspec.Meta(pattern=r"^https?://[a-z0-9.:\[\]-]{1,255}$")], ...] = ()


class AdminSettings(Section, frozen=True):
    """*restart* — administrators. Admin keys always work; an `oidc_issuer` lets its bearer tokens in as well."""

    oidc_issuer: str = ""
    oidc_audience: str = ""
    oidc_jwks_url: str = ""
    oidc_role_claim: str = "tollkeeper_role"
    oidc_client_id: str = ""
    oidc_client_secret_file: str = ""
    oidc_scopes: tuple[str, ...] = ("openid", "email", "profile")
    oidc_groups_claim: str = "groups"
    oidc_roles: dict[str, PersonsRole] = {}
    public_url: str = ""
    oidc_algorithms: tuple[Literal["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"], ...] = (
        "RS256",
        "ES256",
    )
    session_minutes: Positive = 480
    support_grant_credits: Positive = 10_000
    welcome_credits: NotNegative = 0
    welcome_credits_a_day: NotNegative = 100_000


class Jobs(Section, frozen=True):
    """*restart* — work beside serving, on one machine at a time."""

    reconcile_minutes: Positive = 60
    audit_head_file: str = ""
    margin_target_percent: Annotated[int, msgspec.Meta(ge=-100, le=100)] = 0
    cost_tolerance_percent: Annotated[int, msgspec.Meta(ge=0, le=100)] = 2
    openai_admin_key_file: str = ""
    usage_keep_days: NotNegative = 0


class Log(Section, frozen=True):
    """*restart* — one JSON line a request on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    access: bool = True
    opentelemetry: bool = False


class Advanced(Section, frozen=True):
    """*restart* — rarely touched: the defaults suit every deployment we know of."""

    hold_lease_seconds: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 15
    embedded_timeout_seconds: PositiveSeconds = 0.8
    journal_flush_interval_ms: Positive = 50
    same_checkout_seconds: NotNegative = 600
    max_webhook_bytes: Positive = 262_144
    sweep_minutes: Positive = 10
    finance_seconds: PositiveSeconds = 30.0
    openai_costs_url: str = ""
    batch_poll_seconds: PositiveSeconds = 5.0


class Settings(Section, frozen=True):
    """The whole of proxy.toml."""

    listen: Listen = Listen()
    upstream: Upstream = Upstream()
    failover: Failover = Failover()
    database: DatabaseSettings = DatabaseSettings()
    redis: Redis = Redis()
    embedded: Embedded = Embedded()
    journal: Journal = Journal()
    billing: Billing = Billing()
    storage: Storage = Storage()
    purchases: Purchases = Purchases()
    credits: Credits = Credits()
    seller: Seller = Seller()
    app: App = App()
    holds: Holds = Holds()
    metering: Metering = Metering()
    limits: Limits = Limits()
    stripe: Stripe = Stripe()
    notices: Notices = Notices()
    portal: Portal = Portal()
    rollout: Rollout = Rollout()
    cors: Cors = Cors()
    admin: AdminSettings = AdminSettings()
    jobs: Jobs = Jobs()
    log: Log = Log()
    advanced: Advanced = Advanced()
    packages: tuple[Package, ...] = ()
    upstreams: tuple[UpstreamEntry, ...] = ()


LIVE_SECTIONS = (
    "upstreams",
    "failover",
    "billing",
    "storage",
    "purchases",
    "credits",
    "seller",
    "app",
    "holds",
    "metering",
    "limits",
    "packages",
    "rollout",
    "cors",
)
"""An edit of the file changes these at once; every other section waits for a restart."""


def variable_of(key: str) -> str:
    """Return the environment variable of a dotted key."""
    return ENV_PREFIX + key.replace(".", "__").upper()
