"""Speed, measured side by side: this worker and the queues that people would use instead, on one job, in one run.

Start with `__main__`; `contenders` says who runs and how each was tuned, `peers` holds what they run.
"""
