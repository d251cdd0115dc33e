"""The language: types, placed values, federated operators, and the program that they make."""
