"""Everything that imports Celery or kombu, and nothing else does."""
