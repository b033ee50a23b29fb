"""What a run's adapter changed, in words: the answers of its base and of the adapter to the same prompts."""
