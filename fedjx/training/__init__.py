"""What methods are made of: local training, one round, and parts of models and data."""
