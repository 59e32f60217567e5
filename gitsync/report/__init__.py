"""Says what happened: status, Kubernetes Events, metrics and logs.

Owns the words and the bounds: every text that leaves here is redacted and has a largest size. Computes dictionaries
and lines; it never talks to the cluster itself, never decides what is done, and nothing reads its output to decide.
"""
