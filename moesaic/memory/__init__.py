"""Expert pages and the tiers they move between."""
