"""What a step did, what to drop, where it lies on the host: numbers only."""
