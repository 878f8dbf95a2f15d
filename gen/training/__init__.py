"""Training: runs, the trainer, objectives, optimisers, schedules, averages, and recipes made of them."""
