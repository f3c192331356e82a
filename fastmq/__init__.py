"""fastmq, a message broker: the public names."""
