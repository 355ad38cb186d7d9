"""A Stripe simulator on loopback that keeps its own record of the money that moved.

It shares no code with proxy/, billing/ or config/. `python -m sandbox.stripe --help` names the
switches, `sandbox.stripe.control` the paths under /__stripe/ that play customer, bank and dashboard.
Object shapes and accepted parameters are those of API version 2026-10-28.endive (stripe 16.1.0).
"""

from sandbox.stripe.account.settings import Live, Settings
from sandbox.stripe.wire.server import Server, start

__all__ = ["Live", "Server", "Settings", "start"]
