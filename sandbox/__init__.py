"""An OpenAI API simulator on loopback that keeps its own record of what it served.

It shares no code with proxy/ or billing/: whatever those believe, this side states what OpenAI
would have billed. `python -m sandbox --help` names the switches, `sandbox.directives` the ways to
steer one request.
"""

from sandbox.server import Server, start
from sandbox.settings import Live, Settings

__all__ = ["Live", "Server", "Settings", "start"]
