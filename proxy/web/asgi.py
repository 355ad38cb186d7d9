"""Types of ASGI 3.0 (https://asgi.readthedocs.io/en/latest/specs/www.html): one connection and its two directions."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
