"""The survey's contrasts, one file each: lists of edits of recipes, and what is claimed about them."""
