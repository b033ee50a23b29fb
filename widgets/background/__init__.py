"""Work off the page's thread: tasks, progress, and what was measured already."""
