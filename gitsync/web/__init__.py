"""The HTTP surface: webhooks in, status out.

Owns what crosses the wire and who may ask. It turns requests into names for the board and the board's views into
JSON and pages; it never works on an Application itself, never reads the cluster or git, and never sees a Secret's
value. Everything that came from a repository is escaped, every read has a deadline and a largest size.
"""
