"""Other people's trainers: our background callbacks in theirs. One file each, imported by its name."""
