"""A real Kubernetes for the tests, with its registry, git host and load generator, in a network without a way out."""
