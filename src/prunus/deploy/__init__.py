"""Files: pruned models on disk, without pickle, verified when read."""
