"""Server of a student: HTTP routes, and the thread that writes their texts."""
