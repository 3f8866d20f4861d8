"""The threads of one worker process, each a `Loop`, and what they share. `supervisor` builds, starts and ends them."""
