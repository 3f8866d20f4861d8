"""What the demo and the tests need: a local Trackstar, embedded servers. Nothing of production imports it."""
