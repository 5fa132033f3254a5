"""Taking over what an earlier broker left, what is damaged in it, and what must hold at any moment."""
