"""What a worker says of itself: log lines, Sentry, health."""
