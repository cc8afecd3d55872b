"""How the processes of a run share a model, its experts and its batches."""
