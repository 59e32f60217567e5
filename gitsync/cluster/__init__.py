"""The Kubernetes API, as gitsync uses it: one thin client, watches, the leader's Lease and the Record.

Owns every request to the API server and what is kept there for gitsync itself. Knows nothing of git, images or
rollouts, never decides what should be applied or deleted, never logs a body, and never reads an error as "empty".
"""
