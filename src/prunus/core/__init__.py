"""The nouns of Prunus. No algorithms live here."""
