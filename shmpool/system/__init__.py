"""What both sides need of the operating system: processes and locks. Standard library only."""
