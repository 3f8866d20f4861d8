"""Values from outside (headers, entries, texts, addresses): each parsed and bounded once. Pure functions only."""
