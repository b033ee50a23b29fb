"""Work off the page's thread: tasks, progress, and what is known from before, measurements and models opened last."""
