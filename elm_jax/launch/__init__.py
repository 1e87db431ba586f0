"""Launch: recipes, the processes of a job, and preemption."""
