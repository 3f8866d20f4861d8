"""The rules of a cancellation, pure: no clock, no network, no database, no framework.

Time and randomness come in as arguments; everything that goes out is a value.
"""
