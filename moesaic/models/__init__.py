"""Model families: one decoder; each family is data: fixed traits, foreign names, published sizes."""
