"""What a run leaves behind: its lines, its checkpoints, and by what it is known again."""
