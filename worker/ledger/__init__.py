"""The ledger: SQL, through SQLAlchemy Core. The truth about every cancellation.

Functions take an open connection; whoever calls decides what one transaction is.
"""
