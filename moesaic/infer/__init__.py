"""Generation: requests, the runner that turns them into tokens, and the public `LLM`."""
