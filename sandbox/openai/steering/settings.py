"""Settings of the simulator: those of its start, and those that may change while it runs."""

from pathlib import Path
from typing import Any

import msgspec

from sandbox.openai.steering.dialects import Dialect
from sandbox.openai.steering.directives import Directives


class Live(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The part GET/PUT /__sandbox/settings shows and changes; holds for later requests."""

    latency_ms: float = 0.0
    """Pause before the answer's headers, in milliseconds."""
    chunk_interval_ms: float = 0.0
    """Pause between two events of a stream, in milliseconds; 0 writes them back to back."""
    output_tokens: int = 40
    """Natural length of one answer in visible tokens; a smaller cap of the request wins."""
    reasoning_tokens: int = 16
    """Reasoning tokens per choice of a reasoning model."""
    fail_rate: float = 0.0
    """Share of billable requests, 0 to 1, that fail by chance."""
    fail_status: int = 503
    """Status of a request that fails by chance."""
    retrieved_tokens: int = 500
    """Input tokens that each web search or file search call of a response adds."""
    queued_ms: float = 50.0
    """Time a background response stays queued, in milliseconds."""
    background_ms: float = 150.0
    """Time a background response is in progress after that, in milliseconds."""
    batch_ms: float = 200.0
    """Time a batch is in progress, in milliseconds; its lines end one after the other."""
    batch_expires_ms: float = 0.0
    """Time after which a batch expires with what is done, in milliseconds; 0: it never does."""
    batch_fails: bool = False
    """Say that a batch's file does not pass validation."""
    store_ms: float = 50.0
    """Time that a file of a vector store is in progress, in milliseconds."""
    store_file_bytes: int = 0
    """Bytes that every file takes in a vector store; 0: half as much again as the file."""
    context_tokens: int = 1_050_000
    """Prompts above this many tokens get 400 context_length_exceeded."""
    reject_max_tokens: bool = True
    """Refuse max_tokens on reasoning models as OpenAI does."""
    costs_shift_days: int = 0
    """So many days earlier than it was, everything is said to have been served by /v1/organization/costs."""
    costs_skew_percent: dict[str, float] = msgspec.field(default_factory=dict)
    """Model → how many per cent more than the truth /v1/organization/costs says it cost."""
    sideband_status: int = 0
    """Status that every sideband of a call is refused with; 0: none is."""
    new_key: str = ""
    """The only key that is accepted from now on; "": that of the start."""
    directive: dict[str, Any] = msgspec.field(default_factory=dict)
    """Directive keys that hold for every request; a request's own directive wins key by key."""

    def __post_init__(self) -> None:
        """Refuse values that no answer could follow."""
        checks = (
            (self.retrieved_tokens >= 0, "retrieved_tokens must be at least 0"),
            (self.queued_ms >= 0, "queued_ms must be at least 0"),
            (self.background_ms >= 0, "background_ms must be at least 0"),
            (self.batch_ms >= 0, "batch_ms must be at least 0"),
            (self.store_ms >= 0, "store_ms must be at least 0"),
            (self.store_file_bytes >= 0, "store_file_bytes must be at least 0"),
            (self.batch_expires_ms >= 0, "batch_expires_ms must be at least 0"),
            (self.latency_ms >= 0, "latency_ms must be at least 0"),
            (self.chunk_interval_ms >= 0, "chunk_interval_ms must be at least 0"),
            (self.output_tokens >= 0, "output_tokens must be at least 0"),
            (self.reasoning_tokens >= 0, "reasoning_tokens must be at least 0"),
            (0 <= self.fail_rate <= 1, "fail_rate must lie between 0 and 1"),
            (self.fail_status // 100 in {4, 5}, "fail_status must lie between 400 and 599"),
        )
        for holds, complaint in checks:
            if not holds:
                raise ValueError(complaint)
        msgspec.convert(self.directive, Directives)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings at the start, fixed until the end."""

    host: str = "127.0.0.1"
    port: int = 0
    """TCP port; 0 takes a free one."""
    api_key: str = "sk-sandbox"
    """The only bearer key that is accepted."""
    admin_key: str = "sk-admin-sandbox"
    """The bearer key of /v1/organization/costs."""
    record: Path | None = None
    """File that receives the record as JSON lines; None keeps it in memory only."""
    record_keep: int = 100_000
    """Records that stay in memory; the file keeps all."""
    samples: Path | None = None
    """Directory of the `replay` directive; None: tests/samples beside the package."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    dialect: Dialect = "openai"
    """Server to be, in place of OpenAI."""
    deployments: dict[str, str] = msgspec.field(default_factory=dict)
    """Azure: name of a deployment → its model."""
    preload: bool = False
    """Load the newest models' rank file before listening, so that no request waits 0.3 s for it."""
    live: Live = msgspec.field(default_factory=Live)
