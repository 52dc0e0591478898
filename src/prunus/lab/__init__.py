"""The laboratory: networks (`zoo`), data sets (`data`), a trainer for experiments (`trainer`) and its measured presets.

Nothing here is needed to prune a model of your own. Importing this package does not import torch.
"""
