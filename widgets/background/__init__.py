"""Work off the kernel's thread: tasks and their progress, measurements that are kept, and the models opened last."""
