"""From text to batches of token ids: sources, tokenised shards, packing, mixing and a resumable loader."""
