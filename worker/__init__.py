"""The Trackstar cancel worker."""
