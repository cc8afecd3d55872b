"""From text to token ids and back, and from chat messages to a prompt; loads no torch."""
