"""The version of this package. Every room may name it; so it stands in a file that knows no other."""

__version__ = "0.2.0"
