"""Everything that owns a file descriptor; all of it runs in the loop thread."""
