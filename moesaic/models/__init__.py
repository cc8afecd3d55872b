"""Model families: one decoder, and for each family its fixed traits, foreign names and published sizes as data."""
