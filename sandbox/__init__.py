"""An OpenAI API simulator on loopback that keeps its own record of what it served.

It shares no code with proxy/ or billing/: whatever those believe, this side states what OpenAI
would have billed. `python -m sandbox --help` names the switches, `sandbox.openai.steering.directives` the ways to
steer one request.
"""

from sandbox.openai.steering.settings import Live, Settings
from sandbox.openai.wire.server import Server, start

__all__ = ["Live", "Server", "Settings", "start"]
