"""A simulated month of one connection: a warehouse with other people in it, Trackstar's copy, and the rules."""
