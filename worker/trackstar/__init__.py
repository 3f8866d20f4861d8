"""The outside: how this worker talks to Trackstar, and a local stand-in for it."""
