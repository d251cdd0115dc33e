"""The federated language and its engine."""
