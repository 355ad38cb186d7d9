"""Conditions for serving, beyond a valid file: stores reachable, schema current, Redis that keeps data."""

from billing.ledger.rate_cards import RateCards
from billing.money.errors import StoreUnavailable
from billing.storage.database import Database
from billing.storage.migrate import current_revision, migrate, newest_revision
from config.errors import ConfigError
from config.secrets import notices_secret, openai_admin_key, service_key, stripe_keys
from config.settings import Settings


async def prepare_database(database: Database) -> None:
    """Fill an empty database with the schema and a rate card.

    Raises ConfigError when an old one needs `migrate`, StoreUnavailable.
    """
    revision = await current_revision(database)
    if revision is None:
        await migrate(database)
        await RateCards(database).begin_with_shipped()
    elif revision != newest_revision():
        raise ConfigError(
            "database",
            "database.url",
            f"its schema is at {revision}, this version needs {newest_revision()}",
            "run `tollkeeper migrate`",
        )


async def check_redis(settings: Settings) -> None:
    """Refuse a Redis that evicts or keeps nothing. Raises ConfigError, StoreUnavailable."""
    # imported here: a serving worker has its own link and saves redis-py's memory
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.exceptions import RedisError, ResponseError

    timeout = settings.redis.timeout_seconds
    pool = BlockingConnectionPool.from_url(
        settings.redis.url, max_connections=1, timeout=timeout, socket_timeout=timeout, socket_connect_timeout=timeout
    )
    client = Redis(connection_pool=pool)
    try:
        found = {
            **await client.config_get("maxmemory-policy"),
            **await client.config_get("appendonly"),
        }  # one name each: Redis 6
    except ResponseError:
        return  # CONFIG is forbidden here (managed Redis): docs/operations.md says what to check by hand
    except (RedisError, OSError) as error:
        raise StoreUnavailable("redis", f"{type(error).__name__}: {error}") from None
    finally:
        await client.aclose()
        await pool.aclose()
    policy = found.get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        raise ConfigError(
            "redis",
            "redis.url",
            f"maxmemory-policy is {policy!r}, so Redis may throw balances away",
            "set `maxmemory-policy noeviction`",
        )
    if settings.redis.require_aof and found.get("appendonly") != "yes":
        raise ConfigError(
            "redis",
            "redis.require_aof",
            "appendonly is off, so a restart of Redis forgets holds and charges",
            "set `appendonly yes` and `appendfsync always`, or redis.require_aof = false if losing them is acceptable",
        )


def check_keys(settings: Settings) -> None:
    """Check what a file alone cannot know: the keys it needs. Raises ConfigError."""
    stripe_keys(settings)
    notices_secret(settings)
    service_key(settings)
    openai_admin_key(settings)
