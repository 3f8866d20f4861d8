"""A local stand-in for Trackstar: the documented contract, scripted faults, and the truth of each order.

Start reading at `script` (what can go wrong), then `contract` (what is promised).
It imports nothing else of `worker`.
"""

from worker.dev.sandbox.orders import Order, Request, Truth
from worker.dev.sandbox.script import Step, parse
from worker.dev.sandbox.server import Sandbox, serve
from worker.dev.sandbox.world import World

__all__ = ["Order", "Request", "Sandbox", "Step", "Truth", "World", "parse", "serve"]
