"""Training and evaluation of the shipped target/draft pair."""
